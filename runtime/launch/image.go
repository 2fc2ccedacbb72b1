package launch

import (
	"encoding/binary"
	"path"

	"github.com/onggi/onggi/runtime/plan"
	"github.com/onggi/onggi/sys"
	"golang.org/x/sys/unix"
)

const page = 4096

// image writes a plan as a static ELF executable (elf(5)): interpreter (executable), operations (read-only), data
// (writable), results (writable, zero).
func image(p *plan.Plan) ([]byte, error) {
	code, err := sys.Interpreter()
	if err != nil {
		return nil, err
	}
	const codeAt = 0x200
	ops := sys.Bytes(p.Ops)
	opsAt := page
	dataAt := opsAt + (len(ops)+page-1)&^(page-1)
	b := make([]byte, dataAt+len(p.Data))
	copy(b, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(b[16:], 2) // ET_EXEC
	le.PutUint16(b[18:], sys.Machine)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], sys.TextBase+codeAt)
	le.PutUint64(b[32:], 64) // program headers follow
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 5)
	const load, stack, r, w, x = 1, 0x6474e551, 4, 2, 1
	header := func(i int, typ, flags uint32, off, addr, file, mem int) {
		h := b[64+56*i:]
		le.PutUint32(h, typ)
		le.PutUint32(h[4:], flags)
		le.PutUint64(h[8:], uint64(off))
		le.PutUint64(h[16:], uint64(addr))
		le.PutUint64(h[24:], uint64(addr))
		le.PutUint64(h[32:], uint64(file))
		le.PutUint64(h[40:], uint64(mem))
		le.PutUint64(h[48:], page)
	}
	header(0, load, r|x, 0, sys.TextBase, codeAt+len(code), codeAt+len(code))
	header(1, load, r, opsAt, sys.OpsBase, len(ops), len(ops))
	header(2, load, r|w, dataAt, sys.DataBase, len(p.Data), len(p.Data))
	header(3, load, r|w, 0, sys.CellBase, 0, max(p.Cells, 8))
	header(4, stack, r|w, 0, 0, 0, 0)
	copy(b[codeAt:], code)
	copy(b[opsAt:], ops)
	copy(b[dataAt:], p.Data)
	return b, nil
}

// sealed writes an image into a memfd that nobody can change any more, so that what a container finds behind
// /proc/self/exe is neither the runtime nor writable (CVE-2019-5736).
func sealed(image []byte) (int, error) {
	fd, err := unix.MemfdCreate("onggi-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before 6.3 there is no MFD_EXEC
		fd, err = unix.MemfdCreate("onggi-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, err
	}
	if err := writeAll(fd, image); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// unlinked is the fallback where memfds may not be executed (sysctl vm.memfd_noexec): a file in the container's state
// directory that loses its name before it is used, opened for reading only.
func unlinked(dir string, image []byte) (int, error) {
	name := path.Join(dir, "init")
	w, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o500)
	if err != nil {
		return -1, err
	}
	err = writeAll(w, image)
	_ = unix.Close(w)
	fd := -1
	if err == nil {
		fd, err = unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	}
	if e := unix.Unlink(name); e != nil && err == nil {
		_ = unix.Close(fd)
		return -1, e
	}
	return fd, err
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
