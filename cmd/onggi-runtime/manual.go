package main

import "strings"

// page is what --help says of a command, beside its flags.
type page struct{ name, args, summary, text, examples string }

// programHelp is the list of commands.
func programHelp() string {
	var b strings.Builder
	b.WriteString(`onggi-runtime runs containers from OCI bundles: a directory with a config.json and a root file
system. Its commands, flags, exit codes and output are those of runc, so that it can stand where
an engine expects runc.

Usage: onggi-runtime [global flags] COMMAND [flags] [arguments]
       onggi-runtime COMMAND --help

Commands
`)
	for i := range manual {
		m := &manual[i]
		b.WriteString("  " + m.name + strings.Repeat(" ", 12-len(m.name)) + m.summary + "\n")
	}
	b.WriteString(`
Exit codes: 0, or the container's own for run, exec and restore; 1 for an error, 255 for an error of
exec. An error is on the standard error, with what to do about it, and in the file of --log.
`)
	return b.String()
}

var manual = [...]page{
	{
		name: "run", args: "[flags] ID", summary: "create a container, start it, wait for it and delete it",
		text: `The exit code is that of the container's process, 128+N when signal N has ended it. Signals that
onggi-runtime gets are passed on. With --detach it returns as soon as the process runs; the
container is then deleted by the delete command.
`, examples: "  onggi-runtime run --bundle /srv/web web\n  onggi-runtime run -d --pid-file /run/web.pid web\n",
	},
	{
		name: "create", args: "[flags] ID", summary: "make a container, ready to start",
		text: `Namespaces, mounts, limits and everything else are in place when it returns; the process waits in
front of the command until start. Hooks up to createContainer have run.
`, examples: "  onggi-runtime create --bundle /srv/web web && onggi-runtime start web\n",
	},
	{
		name: "start", args: "ID", summary: "execute the command of a created container",
		text: `It returns when the command is being executed, or says why it could not be.
`,
	},
	{
		name: "exec", args: "[flags] ID COMMAND [ARG...]", summary: "run another process in a container",
		text: `The process starts from the container's own process section; flags change it, or --process replaces
it. The exit code is that of the process, 255 when it could not be started; --shell-codes
tells the reasons apart.
`, examples: "  onggi-runtime exec -t web sh\n  onggi-runtime exec --user 1000:1000 --env DEBUG=1 web /bin/check\n  onggi-runtime exec --process process.json --detach --pid-file /run/x.pid web\n",
	},
	{
		name: "kill", args: "[--all] ID [SIGNAL]", summary: "send a signal to a container's first process (default SIGTERM)",
		text: `SIGNAL is a number or a name with or without SIG. SIGKILL ends every process of a container without a
pid namespace of its own, and reaches a paused one too.
`, examples: "  onggi-runtime kill web HUP\n",
	},
	{
		name: "pause", args: "ID", summary: "stop all processes of a container from running",
		text: `They are frozen by the control group (freezer of cgroup v1, cgroup.freeze of v2) and notice nothing.
`,
	},
	{
		name: "resume", args: "ID", summary: "let the processes of a paused container run again",
		text: `They go on where they were. It is an error when the container is not paused.
`,
	},
	{
		name: "update", args: "[flags] ID", summary: "change a container's limits",
		text: `Limits are given by flags, or as linux.resources of the runtime specification in a JSON file (-r). What
is not given stays. When one limit cannot be set, those set before it get their old values back.
Sizes take the suffixes k, m, g, t.
`, examples: "  onggi-runtime update --memory 512m --cpu-quota 50000 web\n  echo '{\"pids\":{\"limit\":100}}' | onggi-runtime update -r - web\n",
	},
	{
		name: "events", args: "[flags] ID", summary: "print a container's counters, and when it runs out of memory",
		text: `One JSON object a line: {"type":"stats","id":ID,"data":{...}} at every interval, and
{"type":"oom","id":ID} when the kernel has run out of memory in it. It ends with the container.
`, examples: "  onggi-runtime events --stats web\n  onggi-runtime events --interval 1s web\n",
	},
	{
		name: "checkpoint", args: "[flags] ID", summary: "save a running container to files, by CRIU",
		text: `All processes, their memory, open files and so on are written by criu, which must be installed. The
container is gone then, unless --leave-running or --pre-dump. What is not saved is the root file
system: keep the bundle as it is.
`, examples: "  onggi-runtime checkpoint --image-path /srv/images web\n  onggi-runtime restore --image-path /srv/images --bundle /srv/web --detach web\n",
	},
	{
		name: "restore", args: "[flags] ID", summary: "make a container from a checkpoint and let it go on",
		text: `The bundle must be the one of the container that was saved. Pipes of the standard streams are
replaced by those of this command; a terminal is given anew. The exit code is as for run.
`, examples: "  onggi-runtime restore --image-path /srv/images --bundle /srv/web web\n",
	},
	{
		name: "state", args: "ID", summary: "print a container's state as JSON",
		text: `The fields are those of the runtime specification's state with rootfs, created and owner. status is
creating, created, running, paused or stopped.
`,
	},
	{
		name: "list", args: "[flags]", summary: "list containers",
		text: `By id. Containers of another --root are not seen.
`, examples: "  onggi-runtime list -q\n",
	},
	{
		name: "ps", args: "[flags] ID [OPTIONS OF PS]", summary: "list a container's processes",
		text: `The table is that of ps(1) with the given options (default -ef), only with the container's processes;
json is an array of pids. Pids are those of the caller's pid namespace.
`, examples: "  onggi-runtime ps web -o pid,rss,args\n",
	},
	{
		name: "delete", args: "[flags] ID", summary: "remove what is left of a stopped container",
		text: `Control groups and state go, poststop hooks run.
`,
	},
	{
		name: "spec", args: "[flags]", summary: "write a default config.json",
		text: `It is never written over another one.
`, examples: "  onggi-runtime spec --bundle /srv/web\n",
	},
	{
		name: "features", args: "", summary: "print what this runtime supports as JSON",
		text: `The fields are those of features.md of the runtime specification.
`,
	},
	{
		name: "plan", args: "[flags]", summary: "print the operations that would make a container from a bundle",
		text: `Nothing is made. doc/runtime.md explains the operations.
`,
	},
}
