package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a block device whose every write is recorded: a loop device over a file that a FUSE server of ours holds in
// memory. The file is opened for direct I/O, so that what the file system above sends arrives here at once and in order,
// and its flushes arrive as fsync. (Kernel: include/uapi/linux/fuse.h; Documentation/filesystems/fuse.rst.)
type disk struct {
	t   testing.TB
	dir string // where the file lies
	dev int    // /dev/fuse

	mu    sync.Mutex
	data  []byte
	log   []change
	watch bool // record
	done  chan struct{}
}

// change is a write of the device, or a flush when data is nil.
type change struct {
	off  int64
	data []byte
}

// newDisk mounts the file server; data is the disk's content, which it owns.
func newDisk(t testing.TB, data []byte) *disk {
	t.Helper()
	d := &disk{t: t, dir: t.TempDir(), data: data, done: make(chan struct{})}
	var err error
	if d.dev, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	if err := unix.Mount("onggi-test", d.dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", d.dev)); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	go d.serve()
	return d
}

func (d *disk) close() {
	if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
		d.t.Error(err)
	}
	<-d.done
	_ = unix.Close(d.dev)
}

// mount attaches a loop device to the file and mounts its ext4 at dir. The device goes with the mount.
func (d *disk) mount(dir string) error {
	ctl, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ctl)
	file, err := unix.Open(filepath.Join(d.dir, "disk"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	for {
		n, err := unix.IoctlRetInt(ctl, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return err
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		if _, err := os.Stat(path); err != nil { // a container's /dev does not grow
			if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
		}
		loop, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		config := unix.LoopConfig{Fd: uint32(file), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		if err = unix.IoctlLoopConfigure(loop, &config); err == nil {
			err = unix.Mount(path, dir, "ext4", 0, "")
		}
		_ = unix.Close(loop)
		if err != unix.EBUSY { // another process took that device
			return err
		}
	}
}

// FUSE's operations that a file system of one file meets.
const (
	fuseLookup, fuseForget, fuseGetattr, fuseSetattr, fuseOpen, fuseRead, fuseWrite = 1, 2, 3, 4, 14, 15, 16
	fuseStatfs, fuseRelease, fuseFsync, fuseFlush, fuseInit, fuseBatchForget        = 17, 18, 20, 25, 26, 42
)

func (d *disk) serve() {
	defer close(d.done)
	b := make([]byte, 2<<20)
	le := binary.LittleEndian
	for {
		n, err := unix.Read(d.dev, b)
		if err == unix.EINTR || err == unix.EAGAIN || err == unix.ENOENT {
			continue
		}
		if err != nil || n < 40 {
			return // ENODEV: unmounted
		}
		op, unique, node, body := le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint64(b[16:]), b[40:n]
		out, errno := d.answer(op, node, body)
		if op == fuseForget || op == fuseBatchForget {
			continue
		}
		head := make([]byte, 16, 16+len(out))
		le.PutUint32(head, uint32(16+len(out)))
		le.PutUint32(head[4:], uint32(-int32(errno)))
		le.PutUint64(head[8:], unique)
		_, _ = unix.Write(d.dev, append(head, out...)) // ENOENT: the request was interrupted
	}
}

func (d *disk) answer(op uint32, node uint64, in []byte) ([]byte, unix.Errno) {
	le := binary.LittleEndian
	d.mu.Lock()
	defer d.mu.Unlock()
	switch op {
	case fuseInit:
		out := make([]byte, 64)
		le.PutUint32(out, 7)
		le.PutUint32(out[4:], 31)
		le.PutUint32(out[8:], 1<<20)
		le.PutUint32(out[12:], 1<<5|1<<22) // FUSE_BIG_WRITES, FUSE_MAX_PAGES
		le.PutUint32(out[20:], 1<<20)      // max_write
		le.PutUint32(out[24:], 1)          // time_gran
		le.PutUint16(out[28:], 256)        // max_pages
		return out, 0
	case fuseLookup:
		if string(in) != "disk\x00" {
			return nil, unix.ENOENT
		}
		out := make([]byte, 40)
		le.PutUint64(out, 2)
		return append(out, d.attr(2)...), 0
	case fuseGetattr, fuseSetattr:
		return append(make([]byte, 16), d.attr(node)...), 0
	case fuseOpen:
		out := make([]byte, 16)
		le.PutUint32(out[8:], 1) // FOPEN_DIRECT_IO
		return out, 0
	case fuseRead:
		off, size := int(le.Uint64(in[8:])), int(le.Uint32(in[16:]))
		off = min(off, len(d.data))
		return append([]byte(nil), d.data[off:min(off+size, len(d.data))]...), 0
	case fuseWrite:
		off, size := int64(le.Uint64(in[8:])), le.Uint32(in[16:])
		data := in[40 : 40+size]
		if off+int64(size) > int64(len(d.data)) {
			return nil, unix.EFBIG
		}
		copy(d.data[off:], data)
		if d.watch {
			d.log = append(d.log, change{off, append([]byte{}, data...)})
		}
		out := make([]byte, 8)
		le.PutUint32(out, size)
		return out, 0
	case fuseFsync:
		if d.watch {
			d.log = append(d.log, change{})
		}
		return nil, 0
	case fuseFlush, fuseRelease, fuseForget, fuseBatchForget:
		return nil, 0
	case fuseStatfs:
		return make([]byte, 80), 0
	}
	return nil, unix.ENOSYS
}

func (d *disk) attr(node uint64) []byte {
	le := binary.LittleEndian
	out := make([]byte, 88)
	le.PutUint64(out, node)
	le.PutUint32(out[60:], unix.S_IFDIR|0o700)
	le.PutUint32(out[64:], 2)
	if node == 2 {
		le.PutUint64(out[8:], uint64(len(d.data)))
		le.PutUint32(out[60:], unix.S_IFREG|0o600)
		le.PutUint32(out[64:], 1)
	}
	le.PutUint32(out[80:], 4096)
	return out
}

// at is how many changes have been recorded.
func (d *disk) at() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.log)
}
