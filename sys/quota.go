package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	xflags, extSize, extents, project, cowExtSize uint32
	_                                             [8]byte
}

const (
	fsGetXattr     = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr     = 0x401c5820 // FS_IOC_FSSETXATTR
	projectInherit = 0x200      // FS_XFLAG_PROJINHERIT
)

func fsxattrCall(fd int, request uintptr, x *fsxattr) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(x))); e != 0 {
		return e
	}
	return nil
}

// Project returns the project id of an open file or directory (ioctl_xfs_fsgetxattr(2)). ENOTTY or EOPNOTSUPP where the
// file system has none.
func Project(fd int) (uint32, error) {
	var x fsxattr
	err := fsxattrCall(fd, fsGetXattr, &x)
	return x.project, err
}

// SetProject gives an open directory a project id, which what is made in it inherits.
func SetProject(fd int, id uint32) error {
	var x fsxattr
	if err := fsxattrCall(fd, fsGetXattr, &x); err != nil {
		return err
	}
	x.project, x.xflags = id, x.xflags|projectInherit
	return fsxattrCall(fd, fsSetXattr, &x)
}

// Quota is a project's part of a file system.
type Quota struct {
	Limit int64 // bytes, rounded up to whole KiB by the kernel; 0 is no limit
	Used  int64 // bytes; SetQuota does not look at it
}

// dqblk is struct if_dqblk of linux/quota.h: blocks of 1 KiB.
type dqblk struct {
	hard, soft, space, inodeHard, inodeSoft, inodes, blockTime, inodeTime uint64
	valid                                                                 uint32
	_                                                                     uint32
}

const (
	prjQuota = 2        // PRJQUOTA
	getQuota = 0x800007 // Q_GETQUOTA
	setQuota = 0x800008 // Q_SETQUOTA
	qifLimit = 1        // QIF_BLIMITS
)

// quotactl is quotactl_fd(2) (Linux 5.14): the file system is that of an open file.
func quotactl(fd int, cmd uint32, id uint32, q *dqblk) error {
	_, _, e := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd), uintptr(cmd<<8|prjQuota), uintptr(id), uintptr(unsafe.Pointer(q)), 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// ProjectQuota returns what a project may take of the file system of fd, and what it takes. ESRCH or ENOSYS where that
// does not count projects.
func ProjectQuota(fd int, id uint32) (Quota, error) {
	var q dqblk
	err := quotactl(fd, getQuota, id, &q)
	return Quota{Limit: int64(q.hard) << 10, Used: int64(q.space)}, err
}

// SetProjectQuota bounds what a project may take of the file system of fd, bytes; 0 takes the bound away.
func SetProjectQuota(fd int, id uint32, limit int64) error {
	blocks := uint64(limit+1023) >> 10
	return quotactl(fd, setQuota, id, &dqblk{hard: blocks, soft: blocks, valid: qifLimit})
}
