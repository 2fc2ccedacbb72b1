// Package events is the journal of what has happened: one append-only file that any number of processes write and follow.
//
// There is no daemon that could hand events out, so they are stored: the command that does something, and the monitor of
// a container that ends, append one record each; whoever wants to know reads what has been, and waits for more with
// inotify. A Journal is a directory:
//
//	log     the records, oldest first
//	log.1   what log was before it reached MaxSize; what was there before is forgotten
//
// A record is RS (0x1e), a line of JSON in the form of Docker's API (GET /events), LF: a JSON text sequence (RFC 7464). A
// record that a crash has torn is recognised, because the next one begins with RS, and costs only itself. Each is one
// write(2) to a file opened with O_APPEND, which the kernel does not mix with others' (open(2)). Nothing is synced: a
// process that is killed loses nothing, a host that loses power may lose the last records.
//
// Writers hold a shared flock(2) for the length of their write; who moves a full log aside takes it exclusively, and only
// if it is free. So nobody waits for longer than a rename, and no record is written behind a reader's back to a file that
// has been moved.
//
// It leaves to others: which events there are and what they say (packages engine and runtime/monitor), filters and
// forms for people (the command line).
package events
