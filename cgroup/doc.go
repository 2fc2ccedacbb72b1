// Package cgroup creates, limits, freezes, measures and removes control groups: v2 first, v1 and hybrid too.
//
// A Group is one path in every hierarchy that counts: one on v2; on v1 and hybrid each mounted controller, the named
// systemd one, and the cgroup2 mount when it carries controllers or systemd watches it. Files are reached by directory
// handles opened once. Limits are those of runtime-spec LinuxResources; devices are v1 lists or a v2 eBPF program of
// our own compiler. A value that the host cannot honour is an error that names the field ("linux.resources.memory.swap"),
// never skipped.
//
// A hierarchy that this process may not write (an engine inside a container, a user namespace) is left out of the group
// and recorded (Group.Skipped); a limit that would have needed it is an error.
//
// Joining costs an RCU grace period when done by another process, so the runtime has the container process join itself:
// on v2 by CLONE_INTO_CGROUP (Dir), on v1 by writing "0" to the tasks files (Tasks), opened by the runtime. On hybrid
// both can be there: the caller does what each returns.
//
// Lifecycle: Detect -> Create -> Apply -> (Dir | Tasks | Add) -> Stats/Freeze/Kill -> Remove. Open finds an existing
// group. A Group is not safe for concurrent use; a Layout is.
//
// With systemd's driver (Scope) the group lies in a transient scope: CreateScope has systemd move a process that is there
// already into it, and Remove stops the scope.
//
// Parents that Create had to make stay when the group is removed: others may be using them at the same moment.
//
// Sources: cgroups(7), the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/*.rst, runtime-spec config-linux.md.
//
// Thin side: no regexp, no net/http. What is said to systemd, and how, is package systemd's.
package cgroup
