package engine

import (
	"context"
	"os"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/errdefs"
)

// AttachOptions are the caller's streams; nil ones are not attached. The monitor reads and writes them itself.
type AttachOptions struct {
	Stdin, Stdout, Stderr *os.File
}

// Attach attaches streams to a running container: what it writes from now on arrives, and what is read goes to its input.
// The caller waits by Session.Client.Wait; when it closes the client, or ends, the container goes on. Conflict when the
// container does not run or is paused; InvalidArgument for input to a container without one.
func (e *Engine) Attach(ctx context.Context, idOrName string, o AttachOptions) (*Session, error) {
	r, err := e.get(idOrName)
	if err != nil {
		return nil, err
	}
	if r.Paused {
		return nil, paused("attach to", idOrName)
	}
	if o.Stdin != nil && !r.Config.OpenStdin {
		return nil, &errdefs.Error{
			Op: "attach to", What: "container " + idOrName, Kind: errdefs.InvalidArgument,
			Why: "it was made without -i, so it has no input to attach to", Fix: "leave the input out (--no-stdin)",
		}
	}
	c, err := e.dial(ctx, r, "attach to", idOrName)
	if err != nil {
		return nil, err
	}
	if err := c.Attach(ctx, o.Stdin, o.Stdout, o.Stderr); err != nil {
		_ = c.Close()
		return nil, err
	}
	r.emit(e, "attach")
	k := r.Container
	return &Session{Container: &k, Client: c}, nil
}

// Detached records that a client has left a container that goes on.
func (e *Engine) Detached(id string) {
	if r, err := e.get(id); err == nil {
		r.emit(e, "detach")
	}
}

// group opens the container's control group; the caller closes it. NotFound when it has ended, Unsupported when this
// user's containers have none.
func (r *record) group() (*cgroup.Group, error) {
	if groupless() {
		return nil, noGroup(r.ID)
	}
	layout, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	return cgroup.Open(layout, r.CgroupPath)
}
