package launch

import (
	"encoding/binary"
	"path"

	"github.com/onggi/onggi/runtime/plan"
	"github.com/onggi/onggi/sys"
	"golang.org/x/sys/unix"
)

const page = sys.ImagePage

// image is a plan as a static ELF executable (elf(5)): interpreter (executable), operations (read-only), data
// (writable), results (writable, zero). The parts are kept apart so that they are copied once, into the file.
type image struct {
	head   []byte // headers and code
	ops    []byte
	data   []byte
	dataAt int64
}

func newImage(p *plan.Plan) (*image, error) {
	code, err := sys.Interpreter()
	if err != nil {
		return nil, err
	}
	const codeAt = 0x200
	m := &image{ops: sys.Bytes(p.Ops), data: p.Data}
	m.dataAt = int64(page + (len(m.ops)+page-1)&^(page-1))
	b := make([]byte, codeAt, codeAt+len(code))
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
	header := func(i int, typ, flags uint32, off int64, addr, file, mem int) {
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
	header(1, load, r, page, sys.OpsBase, len(m.ops), len(m.ops))
	header(2, load, r|w, m.dataAt, sys.DataBase, len(m.data), len(m.data))
	header(3, load, r|w, 0, sys.CellBase, 0, max(p.Cells, 8))
	header(4, stack, r|w, 0, 0, 0, 0)
	m.head = append(b, code...)
	return m, nil
}

func (m *image) write(fd int) error {
	for _, part := range [...]struct {
		b  []byte
		at int64
	}{{m.head, 0}, {m.ops, page}, {m.data, m.dataAt}} {
		for b, at := part.b, part.at; len(b) > 0; {
			n, err := unix.Pwrite(fd, b, at)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			b, at = b[n:], at+int64(n)
		}
	}
	return nil
}

// sealed writes an image into a memfd that nobody can change any more, so that what a container finds behind
// /proc/self/exe is neither the runtime nor writable (CVE-2019-5736).
func sealed(m *image) (int, error) {
	fd, err := unix.MemfdCreate("onggi-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before 6.3 there is no MFD_EXEC
		fd, err = unix.MemfdCreate("onggi-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, err
	}
	if err := m.write(fd); err != nil {
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
func unlinked(dir string, m *image) (int, error) {
	name := path.Join(dir, "init")
	w, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o500)
	if err != nil {
		return -1, err
	}
	err = m.write(w)
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
