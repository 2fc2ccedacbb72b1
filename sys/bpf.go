package sys

import (
	"bytes"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BPFInstruction is struct bpf_insn of linux/bpf.h. Registers are Dst in the low and Src in the high four bits.
type BPFInstruction struct {
	Code uint8
	Regs uint8
	Off  int16
	Imm  int32
}

// The bpf(2) commands used here; x/sys/unix has the call's number only.
const (
	bpfProgLoad      = 5
	bpfProgAttach    = 8
	bpfProgDetach    = 9
	bpfProgGetFDByID = 13
	bpfObjGetInfo    = 15
	bpfProgQuery     = 16

	bpfFAllowMulti = 1 << 1
	bpfFReplace    = 1 << 2
)

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR, unix.EAGAIN: // EAGAIN: the verifier was interrupted by a signal; libbpf tries again too
			continue
		}
		return -1, errno
	}
}

// BPFProgLoad loads an eBPF program of type kind (BPF_PROG_TYPE_*) and returns its descriptor (close-on-exec). Name is
// at most 15 letters, digits and underscores; the licence is given as "Apache" (no GPL-only function may be called).
// Needs CAP_BPF or CAP_SYS_ADMIN in the first user namespace. bpf(2).
func BPFProgLoad(kind uint32, program []BPFInstruction, name string) (int, error) {
	if len(program) == 0 {
		return -1, unix.EINVAL
	}
	license := []byte("Apache\x00")
	var pin runtime.Pinner // the kernel gets addresses as numbers: what they point to must not move with a growing stack
	defer pin.Unpin()
	pin.Pin(&program[0])
	pin.Pin(&license[0])
	attr := struct {
		kind, count        uint32
		insns, license     uint64
		logLevel, logSize  uint32
		logBuf             uint64
		kernVersion, flags uint32
		name               [16]byte
	}{
		kind: kind, count: uint32(len(program)),
		insns:   uint64(uintptr(unsafe.Pointer(unsafe.SliceData(program)))),
		license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	copy(attr.name[:15], name)
	return bpf(bpfProgLoad, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

type bpfAttachAttr struct {
	target, prog, kind, flags, replace uint32
}

// BPFCgroupAttach attaches a program to the cgroup v2 directory cgroup as attach type kind (BPF_CGROUP_*), beside those
// of others (BPF_F_ALLOW_MULTI). With replace >= 0 it takes the place of that program at one stroke (BPF_F_REPLACE,
// Linux 5.6).
func BPFCgroupAttach(cgroup, prog int, kind uint32, replace int) error {
	attr := bpfAttachAttr{target: uint32(cgroup), prog: uint32(prog), kind: kind, flags: bpfFAllowMulti}
	if replace >= 0 {
		attr.flags |= bpfFReplace
		attr.replace = uint32(replace)
	}
	_, err := bpf(bpfProgAttach, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// BPFCgroupDetach takes a program off a cgroup.
func BPFCgroupDetach(cgroup, prog int, kind uint32) error {
	attr := bpfAttachAttr{target: uint32(cgroup), prog: uint32(prog), kind: kind}
	_, err := bpf(bpfProgDetach, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// BPFCgroupPrograms returns open descriptors (close-on-exec) of the programs attached to the cgroup itself as attach
// type kind whose name is name. At most 64 are looked at, which is what the kernel allows on one cgroup.
func BPFCgroupPrograms(cgroup int, kind uint32, name string) ([]int, error) {
	ids := make([]uint32, 64)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&ids[0])
	query := struct {
		target, kind, queryFlags, attachFlags uint32
		ids                                   uint64
		count, _                              uint32
	}{target: uint32(cgroup), kind: kind, ids: uint64(uintptr(unsafe.Pointer(&ids[0]))), count: uint32(len(ids))}
	_, err := bpf(bpfProgQuery, unsafe.Pointer(&query), unsafe.Sizeof(query))
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, id := range ids[:min(int(query.count), len(ids))] {
		byID := struct{ id, next, flags uint32 }{id: id}
		fd, err := bpf(bpfProgGetFDByID, unsafe.Pointer(&byID), unsafe.Sizeof(byID))
		if err == unix.ENOENT { // detached and freed meanwhile
			continue
		}
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		have, err := bpfName(fd)
		if err == nil && have == name {
			fds = append(fds, fd)
			continue
		}
		_ = unix.Close(fd)
		if err != nil {
			closeAll(fds)
			return nil, err
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// bpfName reads struct bpf_prog_info up to its name.
func bpfName(fd int) (string, error) {
	info := new(struct {
		kind, id             uint32
		tag                  [8]byte
		jitedLen, xlatedLen  uint32
		jited, xlated, since uint64
		uid, maps            uint32
		mapIDs               uint64
		name                 [16]byte
	})
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(info)
	attr := struct {
		fd, size uint32
		info     uint64
	}{uint32(fd), uint32(unsafe.Sizeof(*info)), uint64(uintptr(unsafe.Pointer(info)))}
	_, err := bpf(bpfObjGetInfo, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return "", err
	}
	name, _, _ := bytes.Cut(info.name[:], []byte{0})
	return string(name), nil
}
