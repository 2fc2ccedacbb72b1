package errdefs

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"syscall"
)

// Kind is the class of a failure: what a program can decide on.
type Kind uint8

// The kinds. Their order is not stable; they cross process borders by name (see String).
const (
	Unknown          Kind = iota
	InvalidArgument       // the caller asked for something that can never work
	NotFound              // the named object does not exist
	AlreadyExists         // the name is taken
	Conflict              // the object is in a state that forbids this (running, in use)
	Unavailable           // a peer (registry, network) does not answer or answers 5xx; trying again may help
	Unauthorized          // credentials are missing or refused
	Forbidden             // the kernel, the registry or a policy says no
	NoSpace               // disk, inodes or quota are used up (ENOSPC, EDQUOT)
	Exhausted             // a limit other than disk: pids, addresses, file descriptors, a size bound of ours
	Unsupported           // neither this kernel nor this build can do it
	Corrupt               // data does not match its digest, size or format
	Canceled              // the caller gave up
	DeadlineExceeded      // time ran out
	CommandNotFound       // the container's command does not exist: exit code 127
	NotExecutable         // the container's command exists and cannot be executed: exit code 126
	Internal              // a bug of ours
)

var kindNames = [...]string{
	Unknown: "unknown", InvalidArgument: "invalid-argument", NotFound: "not-found", AlreadyExists: "already-exists",
	Conflict: "conflict", Unavailable: "unavailable", Unauthorized: "unauthorized", Forbidden: "forbidden",
	NoSpace: "no-space", Exhausted: "exhausted", Unsupported: "unsupported", Corrupt: "corrupt", Canceled: "canceled",
	DeadlineExceeded: "deadline-exceeded", CommandNotFound: "command-not-found", NotExecutable: "not-executable",
	Internal: "internal",
}

// String returns the kind's stable name.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown"
}

// MarshalText writes the kind by its stable name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a kind by name; a name of a later version becomes Unknown.
func (k *Kind) UnmarshalText(b []byte) error {
	*k = Unknown
	for i, n := range kindNames {
		if n == string(b) {
			*k = Kind(i)
		}
	}
	return nil
}

// Error is a failure with its remedy. Every field but Kind may be empty.
//
//	&Error{Op: "run", What: "ngnix", Kind: NotFound,
//		Why: "the registry has no repository docker.io/library/ngnix",
//		Fix: "check the spelling of the name and the tag"}
type Error struct {
	Op   string // what was being done, as a verb in the infinitive: "pull", "mount the root file system"
	What string // to which object, as the user named it
	Kind Kind
	Why  string // the reason, in a user's words
	Fix  string // what to type or change next
	Err  error  // the cause, if there is one
}

// Error reads "cannot OP WHAT: WHY: ERR".
func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString("cannot ")
		b.WriteString(e.Op)
		if e.What != "" {
			b.WriteByte(' ')
		}
	}
	b.WriteString(e.What)
	if e.Why != "" {
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(e.Why)
	}
	if e.Err != nil {
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(e.Err.Error())
	}
	if b.Len() == 0 {
		return e.Kind.String()
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

type wire struct {
	Op    string `json:"op,omitempty"`
	What  string `json:"what,omitempty"`
	Kind  Kind   `json:"kind"`
	Why   string `json:"why,omitempty"`
	Fix   string `json:"fix,omitempty"`
	Cause string `json:"cause,omitempty"`
}

// MarshalJSON writes the error for another process of Onggi; the cause becomes its text.
func (e *Error) MarshalJSON() ([]byte, error) {
	w := wire{Op: e.Op, What: e.What, Kind: KindOf(e), Why: e.Why, Fix: FixOf(e)}
	if e.Err != nil {
		w.Cause = e.Err.Error()
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (e *Error) UnmarshalJSON(b []byte) error {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*e = Error{Op: w.Op, What: w.What, Kind: w.Kind, Why: w.Why, Fix: w.Fix}
	if w.Cause != "" {
		e.Err = errors.New(w.Cause)
	}
	return nil
}

// As returns err as an *Error: itself when it is one, else one that wraps it with its kind. As(nil) is nil.
func As(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*Error); ok {
		return e
	}
	return &Error{Kind: KindOf(err), Fix: FixOf(err), Err: err}
}

// KindOf returns the kind of the outermost error in the chain that has one; an errno, a context error or an
// io/fs error further in is translated. KindOf(nil) is Unknown.
func KindOf(err error) Kind {
	for e := err; e != nil; {
		var x *Error
		if !errors.As(e, &x) {
			break
		}
		if x.Kind != Unknown {
			return x.Kind
		}
		e = x.Err
	}
	var errno syscall.Errno
	switch {
	case err == nil:
		return Unknown
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	case errors.As(err, &errno):
		return kindOfErrno(errno)
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrExist):
		return AlreadyExists
	case errors.Is(err, fs.ErrPermission):
		return Forbidden
	}
	return Unknown
}

func kindOfErrno(e syscall.Errno) Kind {
	switch e {
	case syscall.ENOENT, syscall.ESRCH:
		return NotFound
	case syscall.EEXIST:
		return AlreadyExists
	case syscall.EBUSY, syscall.ENOTEMPTY, syscall.ETXTBSY:
		return Conflict
	case syscall.EPERM, syscall.EACCES, syscall.EROFS:
		return Forbidden
	case syscall.ENOSPC, syscall.EDQUOT:
		return NoSpace
	case syscall.EMFILE, syscall.ENFILE, syscall.EAGAIN, syscall.ENOMEM, syscall.EFBIG:
		return Exhausted
	case syscall.ENOSYS, syscall.EOPNOTSUPP, syscall.ENODEV:
		return Unsupported
	case syscall.EINVAL, syscall.ENAMETOOLONG, syscall.E2BIG:
		return InvalidArgument
	case syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ECONNRESET, syscall.EPIPE:
		return Unavailable
	case syscall.ETIMEDOUT:
		return DeadlineExceeded
	}
	return Unknown
}

// FixOf returns the first remedy in the chain, or "".
func FixOf(err error) string {
	for err != nil {
		var x *Error
		if !errors.As(err, &x) {
			return ""
		}
		if x.Fix != "" {
			return x.Fix
		}
		err = x.Err
	}
	return ""
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// codes is the one translation table.
var codes = [...]struct {
	exit int // as docker's and podman's users know them
	http int
	grpc int // google.golang.org/grpc/codes, by number so that grpc is not imported
}{
	Unknown:          {125, 500, 2},
	InvalidArgument:  {125, 400, 3},
	NotFound:         {125, 404, 5},
	AlreadyExists:    {125, 409, 6},
	Conflict:         {125, 409, 9},
	Unavailable:      {125, 503, 14},
	Unauthorized:     {125, 401, 16},
	Forbidden:        {125, 403, 7},
	NoSpace:          {125, 507, 8},
	Exhausted:        {125, 429, 8},
	Unsupported:      {125, 501, 12},
	Corrupt:          {125, 500, 15},
	Canceled:         {130, 499, 1},
	DeadlineExceeded: {125, 504, 4},
	CommandNotFound:  {127, 400, 3},
	NotExecutable:    {126, 400, 3},
	Internal:         {125, 500, 13},
}

// ExitCode returns what `onggi run` and `create` exit with for this kind (start and exec only for 126 and 127): 125
// for the engine's own failures, 126 and 127 for a command that cannot be executed or found (docker run, "Exit
// status").
func (k Kind) ExitCode() int { return codes[k].exit }

// HTTPStatus returns the HTTP status of the Docker Engine API for this kind.
func (k Kind) HTTPStatus() int { return codes[k].http }

// GRPCCode returns the number of the gRPC status code for this kind.
func (k Kind) GRPCCode() int { return codes[k].grpc }
