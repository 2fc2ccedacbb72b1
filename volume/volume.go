// Package volume keeps named volumes: a directory volumes/<name>/_data with a record beside it.
//
// Names follow docker's rule: [a-zA-Z0-9][a-zA-Z0-9_.-]+. A volume that a container record refers to is never removed.
package volume

import "time"

// Store is a directory of volumes.
type Store struct{ dir string }

// Volume is one volume.
type Volume struct {
	Name      string            `json:"name"`
	Path      string            `json:"-"` // absolute path of the data
	Labels    map[string]string `json:"labels,omitempty"`
	Anonymous bool              `json:"anonymous,omitempty"`
	Created   time.Time         `json:"created"`
	// Fresh: nothing has been mounted from it yet, so the image's content at the mount point is still to be copied in.
	Fresh bool `json:"fresh,omitempty"`
}

// Open opens or makes the store in dir.
func Open(dir string) (*Store, error) { panic("contract") }

// Ensure returns the volume, making it if it is not there. An empty name makes an anonymous one (64 hex digits).
func (s *Store) Ensure(name string, labels map[string]string) (*Volume, error) { panic("contract") }

// EnsureAnonymous is Ensure for an anonymous volume whose name (64 hex digits) the caller has chosen and recorded
// before, so that a crash between the two leaves no volume that nobody owns.
func (s *Store) EnsureAnonymous(name string) (*Volume, error) { panic("contract") }

// Get returns the volume, or NotFound.
func (s *Store) Get(name string) (*Volume, error) { panic("contract") }

// Populate copies the tree below the directory handle src into a fresh volume (owner, mode, links, xattrs kept), once;
// it is what docker does at first use. A volume with content is left alone.
func (s *Store) Populate(v *Volume, src int) error { panic("contract") }

// List returns all volumes by name.
func (s *Store) List() ([]*Volume, error) { panic("contract") }

// Remove removes a volume and its data. Not there is not an error.
func (s *Store) Remove(name string) error { panic("contract") }
