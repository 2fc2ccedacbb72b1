// Package cgroup creates, limits, freezes, measures and removes control groups: v2 first, v1 and hybrid too.
//
// A Group is one path in every hierarchy that counts (one on v2; each mounted controller and the named systemd one on
// v1 and hybrid). Files are reached by directory handles opened once. Limits are those of runtime-spec
// LinuxResources; devices are v1 lists or a v2 eBPF program of our own compiler. A value that the host cannot honour
// is an error that names the field, never skipped.
//
// Joining costs an RCU grace period when done by another process, so the runtime has the container process join itself:
// on v2 by CLONE_INTO_CGROUP (Dir), on v1 by writing "0" to the tasks files (Tasks), opened by the runtime.
//
// Lifecycle: Create -> Apply -> (Dir | Tasks | Add) -> Stats/Freeze/Kill -> Remove. Open finds an existing group.
//
// Thin side: no regexp, no net/http. Systemd's driver is another room (its own issue).
package cgroup

import (
	"os"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Layout is how this host mounts control groups.
type Layout struct {
	V2          bool              // unified: /sys/fs/cgroup is cgroup2
	Hybrid      bool              // v1 controllers and a cgroup2 mount without controllers
	Controllers map[string]string // v1: controller -> absolute mount point ("name=systemd" included)
	Root        string            // v2: mount point
}

// Detect reads /proc/self/mountinfo and /proc/self/cgroup once.
func Detect() (*Layout, error) { panic("contract") }

// Group is one control group.
type Group struct{}

// Create makes the group at path ("/onggi/<id>", relative to the hierarchy's root, or to the caller's own group when
// it does not begin with a slash) in every hierarchy, enabling controllers on the way (v2 subtree_control). A group
// that exists and has processes is an error of kind Conflict. On failure nothing stays.
func Create(l *Layout, path string) (*Group, error) { panic("contract") }

// Open returns the group at path; NotFound when it is in no hierarchy.
func Open(l *Layout, path string) (*Group, error) { panic("contract") }

// Apply sets limits. Nil fields are left alone.
func (g *Group) Apply(r *runspec.LinuxResources) error { panic("contract") }

// Dir returns a handle of the v2 directory for CLONE_INTO_CGROUP; nil on v1.
func (g *Group) Dir() *os.File { panic("contract") }

// Tasks returns the open v1 tasks files (write-only) for the container process to join by writing "0".
func (g *Group) Tasks() []*os.File { panic("contract") }

// Paths returns controller -> absolute directory ("" -> directory on v2).
func (g *Group) Paths() map[string]string { panic("contract") }

// Add moves a process into the group (all of its threads).
func (g *Group) Add(pid int) error { panic("contract") }

// Pids lists the processes of the group and its descendants.
func (g *Group) Pids() ([]int, error) { panic("contract") }

// Freeze stops or resumes everything in the group, and returns when the kernel says so.
func (g *Group) Freeze(frozen bool) error { panic("contract") }

// Frozen reports the state.
func (g *Group) Frozen() (bool, error) { panic("contract") }

// Kill kills everything in the group and its descendants (cgroup.kill, or freeze-kill-thaw) and returns at once.
func (g *Group) Kill() error { panic("contract") }

// Stats are the numbers most asked for; zero when the controller is absent.
type Stats struct {
	CPUUsage, CPUUser, CPUSystem                     uint64 // ns
	ThrottledPeriods, ThrottledTime                  uint64 // count, ns
	MemoryUsage, MemoryLimit, MemoryPeak, MemorySwap uint64 // bytes
	MemoryFile                                       uint64 // page cache, bytes
	Pids, PidsLimit                                  uint64
	OOMKills                                         uint64
	IORead, IOWrite                                  uint64 // bytes
}

// Stats reads them.
func (g *Group) Stats() (*Stats, error) { panic("contract") }

// OOMKills is the number of processes that the kernel has killed here for memory.
func (g *Group) OOMKills() (uint64, error) { panic("contract") }

// Remove removes the group and its descendants' directories, waiting a bounded time for dying processes. Not there is
// not an error.
func (g *Group) Remove() error { panic("contract") }

// Close closes the handles.
func (g *Group) Close() error { panic("contract") }
