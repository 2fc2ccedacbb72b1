// Package test holds the stories: tests of the built binaries as a user runs them, on real parts (Debian's registry,
// clients and runtimes), inside a private mount and network namespace that TestMain makes, so that bridges, rules
// and mounts of a failing test go away with it.
//
//	walk_test.go    a debootstrap image, pushed, pulled, run, limited, published, logged, cleaned up
//	crash_test.go   every named step failed and killed
//	dropin_test.go  podman, docker and containerd with onggi-runtime
//	script_test.go  the command line, as scripts in script/
package test
