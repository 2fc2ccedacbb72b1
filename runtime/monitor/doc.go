// Package monitor is the container's parent: one small process per container (`onggi-runtime monitor`), of the thin
// binary, that outlives the command which started it.
//
// It owns stdio and terminal, writes the log, creates and starts the container through a Creator (our own runtime in
// process, or any OCI runtime by its command line), waits, and writes the exit record; then it has the host cleaned up:
// by the client that promised it, or else by running Config.Cleanup. It never reads the store and knows nothing of
// images or networks.
//
//	engine                                monitor (session leader, own stdio on /dev/null)
//	  |-- Plant, then Spawn(config, fds) -> lock RunDir/monitor.lock, listen on RunDir/monitor.sock (0600)
//	  |<-------------------- created(pid)  Creator.Create: the container process waits for start
//	  |-- start -------------------------> Process.Start
//	  |<-------------------- started(at)   or failed(error), with 126/127 by its kind
//	  |-- attach / resize / signal ------> any number of times, from any number of clients
//	  |<-------------------- exited(exit)  after stdio has been drained and the log is complete and flushed
//	  |-- mine --------------------------> this client cleans up; otherwise the monitor runs Config.Cleanup
//
// The first client's connection is inherited (no race, no polling for a socket); others Dial. Messages are JSON, one per
// SOCK_SEQPACKET packet, at most 64 KiB, file descriptors as SCM_RIGHTS; peers must have the monitor's uid (SO_PEERCRED).
// A monitor is alive exactly while RunDir/monitor.lock is locked. It costs at most 1 MiB of proportional memory: it
// holds no more than one 64 KiB buffer per stream and frees what setting up took.
package monitor
