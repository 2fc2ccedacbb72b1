// Package criu speaks with CRIU (criu.org), which saves a tree of processes to files and brings it back.
//
// CRIU is a program of its own: Call starts it as `criu swrk`, sends one request over a socket pair, answers the notices
// that it gives on the way, and returns its response. The messages are those of CRIU's own protocol buffers
// (go-criu/rpc); neither gRPC nor reflection comes with them, so the thin binary can afford them.
//
// Lifecycle: Version -> (Features) -> Call. Every call is a process of its own and leaves none but what it restored.
//
// It leaves to others: what a container is, where its images lie, mounts and control groups (runtime/launch).
//
// Sources: criu.org/RPC, images/rpc.proto of CRIU 3.17 to 4.1.
package criu

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// Notice is what CRIU tells while it works. Script names the moment: "post-dump", "setup-namespaces", "post-restore",
// "orphan-pts-master", "status-ready", "network-lock" and others.
type Notice struct {
	Script string
	Pid    int      // of the first process, where there is one
	File   *os.File // the terminal of "orphan-pts-master"; the receiver closes it
}

// Request is one call.
type Request struct {
	Path string // of the program; a name without a slash is looked for where systems keep programs
	Req  *rpc.CriuReq
	// Stdio becomes CRIU's and so the restored processes' standard streams; nil is /dev/null.
	Stdio [3]*os.File
	// Files become descriptors FirstFile, FirstFile+1, ...
	Files []*os.File
	// Notify is called for every notice; an error ends the work. May be nil.
	Notify func(*Notice) error
	// Started is called with CRIU's pid before the request is sent; an error ends the work. May be nil.
	Started func(pid int) error
	// Log is the file in which CRIU says what went wrong; "" when unknown. Its last errors become part of the error.
	Log string
}

// FirstFile is the descriptor of the first of Request.Files in CRIU: 3 is the socket.
const FirstFile = 4

// maxMessage is more than any response: CRIU's own limit is 128 KiB.
const maxMessage = 256 << 10

// Call does a request. Preconditions: it needs root; when the caller's thread is in another mount namespace, CRIU is
// too. Errors: NotFound when there is no such program.
func Call(r *Request) (_ *rpc.CriuResp, err error) {
	name, err := find(r.Path)
	if err != nil {
		return nil, err
	}
	sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, &errdefs.Error{Op: "start", What: name, Err: err}
	}
	ours := sp[0]
	defer unix.Close(ours) //nolint:errcheck // a socket of our own
	theirs := os.NewFile(uintptr(sp[1]), "criu")
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		_ = theirs.Close()
		return nil, err
	}
	files := []*os.File{null, null, null, theirs}
	for i, f := range r.Stdio {
		if f != nil {
			files[i] = f
		}
	}
	p, err := os.StartProcess(name, []string{"criu", "swrk", "3"}, &os.ProcAttr{Files: append(files, r.Files...)})
	_ = theirs.Close()
	_ = null.Close()
	if err != nil {
		return nil, &errdefs.Error{Op: "start", What: name, Err: err}
	}
	ended := false
	defer func() {
		if !ended {
			_ = p.Kill()
		}
		_, _ = p.Wait()
	}()
	if r.Started != nil {
		if err := r.Started(p.Pid); err != nil {
			return nil, err
		}
	}
	if err := send(ours, r.Req); err != nil {
		return nil, err
	}
	for {
		resp, f, err := receive(ours)
		if err != nil {
			return nil, &errdefs.Error{Op: "hear from", What: name, Err: errors.Join(err, logged(r.Log))}
		}
		if resp.GetType() == rpc.CriuReqType_NOTIFY && resp.GetSuccess() {
			n := &Notice{Script: resp.GetNotify().GetScript(), Pid: int(resp.GetNotify().GetPid()), File: f}
			if r.Notify != nil {
				err = r.Notify(n)
			} else if f != nil {
				_ = f.Close()
			}
			if err != nil {
				_ = send(ours, &rpc.CriuReq{Type: ptr(rpc.CriuReqType_NOTIFY), NotifySuccess: ptr(false)})
				return nil, err
			}
			if err := send(ours, &rpc.CriuReq{Type: ptr(rpc.CriuReqType_NOTIFY), NotifySuccess: ptr(true)}); err != nil {
				return nil, err
			}
			continue
		}
		if f != nil {
			_ = f.Close()
		}
		if !resp.GetSuccess() {
			e := &errdefs.Error{Op: "have CRIU " + verb(r.Req.GetType()), What: "the container", Kind: errdefs.Unknown, Why: "CRIU failed"}
			if resp.CrErrno != nil && resp.GetCrErrno() != 0 {
				e.Why += " with: " + unix.Errno(resp.GetCrErrno()).Error()
			}
			if m := resp.GetCrErrmsg(); m != "" {
				e.Why += ": " + m
			}
			e.Err = logged(r.Log)
			if r.Log != "" {
				e.Fix = "read " + r.Log
			}
			return nil, e
		}
		// After a pre-dump CRIU waits for another request on the socket, which is closed now.
		ended = r.Req.GetType() != rpc.CriuReqType_PRE_DUMP
		return resp, nil
	}
}

func verb(t rpc.CriuReqType) string {
	switch t {
	case rpc.CriuReqType_DUMP, rpc.CriuReqType_PRE_DUMP:
		return "save"
	case rpc.CriuReqType_RESTORE:
		return "restore"
	}
	return "check"
}

func ptr[T any](v T) *T { return &v }

// places are where a name without a slash is looked for: never in PATH, which may be anybody's.
var places = [...]string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// find is the program's absolute path.
func find(name string) (string, error) {
	if name == "" {
		name = "criu"
	}
	tries := []string{name}
	if !strings.Contains(name, "/") {
		tries = nil
		for _, dir := range places {
			tries = append(tries, dir+"/"+name)
		}
	}
	for _, t := range tries {
		if st, err := os.Stat(t); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return filepath.Abs(t)
		}
	}
	return "", &errdefs.Error{
		Op: "find", What: name, Kind: errdefs.NotFound, Why: "checkpoint and restore need CRIU",
		Fix: "install criu (Debian: apt-get install criu), or name it with --criu PATH",
	}
}

func send(fd int, r *rpc.CriuReq) error {
	b, err := r.MarshalVT()
	if err == nil {
		err = unix.Sendmsg(fd, b, nil, nil, unix.MSG_NOSIGNAL)
	}
	if err != nil {
		return &errdefs.Error{Op: "tell", What: "CRIU", Err: err}
	}
	return nil
}

// receive reads one message, with the descriptor that may come along.
func receive(fd int) (*rpc.CriuResp, *os.File, error) {
	b, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	for {
		n, on, flags, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil && err != unix.ECONNRESET:
			return nil, nil, err
		case err != nil || n == 0:
			return nil, nil, errors.New("it ended without an answer")
		}
		var f *os.File
		if ms, err := unix.ParseSocketControlMessage(oob[:on]); err == nil && len(ms) == 1 {
			if fds, err := unix.ParseUnixRights(&ms[0]); err == nil && len(fds) == 1 {
				f = os.NewFile(uintptr(fds[0]), "terminal")
			}
		}
		r := &rpc.CriuResp{}
		if flags&unix.MSG_TRUNC != 0 {
			err = errors.New("a message of more than " + strconv.Itoa(maxMessage) + " bytes")
		} else {
			err = r.UnmarshalVT(b[:n])
		}
		if err != nil {
			if f != nil {
				_ = f.Close()
			}
			return nil, nil, err
		}
		return r, f, nil
	}
}

// logged returns the errors at the end of CRIU's log: it says there what it does not say in its response.
func logged(name string) error {
	if name == "" {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close() //nolint:errcheck // read only
	if st, err := f.Stat(); err == nil && st.Size() > 1<<20 {
		_, _ = f.Seek(-1<<20, 2)
	}
	var found []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if _, text, ok := strings.Cut(s.Text(), "Error ("); ok {
			if _, text, ok = strings.Cut(text, "): "); ok {
				found = append(found, text)
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	return errors.New(strings.Join(found[max(0, len(found)-3):], "; "))
}

// Version asks the program for its version: 31701 is 3.17.1.
func Version(path string) (int, error) {
	r, err := Call(&Request{Path: path, Req: &rpc.CriuReq{Type: ptr(rpc.CriuReqType_VERSION)}})
	if err != nil {
		return 0, err
	}
	v := r.GetVersion()
	return int(v.GetMajorNumber())*10000 + int(v.GetMinorNumber())*100 + int(v.GetSublevel()), nil
}

// Features asks what program and kernel can do: tracking of memory that changes, for pre-dumps, and restoring pages when
// they are touched.
func Features(path string) (track, lazy bool, err error) {
	r, err := Call(&Request{Path: path, Req: &rpc.CriuReq{
		Type:     ptr(rpc.CriuReqType_FEATURE_CHECK),
		Features: &rpc.CriuFeatures{MemTrack: ptr(true), LazyPages: ptr(true)},
	}})
	if err != nil {
		return false, false, err
	}
	return r.GetFeatures().GetMemTrack(), r.GetFeatures().GetLazyPages(), nil
}
