// Package mount holds the Mount value that snapshots make and the runtime consumes, and its executor.
//
// A Mount is data: it can be written to a file, sent to a monitor, compiled into a runtime plan or performed here. No
// mount that Onggi makes for a container lives in the host's mount namespace: the runtime performs the root file
// system's mounts inside the container's own namespace, and for foreign runtimes the monitor performs them in a
// private namespace of its own, so that the kernel takes them away when the last process is gone, whatever crashed.
package mount

// Mount is one mount to be made. The zero value is not valid.
type Mount struct {
	// Type is "overlay", "bind", or any file system type of the kernel.
	Type string `json:"type"`
	// Source is the device or, for bind, the directory or file. Unused for overlay.
	Source string `json:"source,omitempty"`
	// Target is relative to the root being assembled; "" is the root itself.
	Target string `json:"target,omitempty"`
	// Options are mount(8) options: "ro", "nosuid", "rbind" ...
	Options []string `json:"options,omitempty"`
	// Overlay is set for type "overlay".
	Overlay *Overlay `json:"overlay,omitempty"`
}

// Overlay is the layers of an overlayfs mount; paths are absolute.
type Overlay struct {
	// Lower holds the read-only layers, topmost first. There is at least one.
	Lower []string `json:"lower"`
	// Upper and Work are the writable layer; both empty means a read-only overlay (which needs two Lowers, or is made
	// as a read-only bind of the one).
	Upper string `json:"upper,omitempty"`
	Work  string `json:"work,omitempty"`
	// Volatile skips syncing the writable layer: for containers whose layer dies with them (--rm).
	Volatile bool `json:"volatile,omitempty"`
	// UserXattr keeps overlay's own attributes in the user. namespace, as user namespaces need.
	UserXattr bool `json:"userXattr,omitempty"`
}
