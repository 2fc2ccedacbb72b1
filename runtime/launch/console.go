package launch

import (
	"os"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// DialConsole connects to an engine's console socket (runc's --console-socket): the terminal's master side is sent
// there in one message with SCM_RIGHTS (unix(7)).
func DialConsole(name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		_ = unix.Close(fd)
		return nil, &errdefs.Error{Op: "connect to the console socket", What: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// receive takes the terminal from the other end of a console socket.
func receive(fd int) (*os.File, error) {
	b, oob := make([]byte, 64), make([]byte, unix.CmsgSpace(4))
	for {
		n, on, _, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, unix.ECONNRESET
		}
		ms, err := unix.ParseSocketControlMessage(oob[:on])
		if err != nil || len(ms) != 1 {
			return nil, unix.EPROTO
		}
		fds, err := unix.ParseUnixRights(&ms[0])
		if err != nil || len(fds) != 1 {
			return nil, unix.EPROTO
		}
		return os.NewFile(uintptr(fds[0]), "terminal"), nil
	}
}
