// Package undo runs named steps in order and takes them back in reverse.
//
// A Stack is the shape of every operation in Onggi that can fail half way: each step has a name, a deed and its
// reversal. When a step fails, or the caller's context ends, Undo runs the reversals of the finished steps, last
// first, each under a fresh context, and joins their errors to the first one. After the point of no return the caller
// calls Done and the reversals are forgotten.
//
// The name of a step is also a fault point (build tag "faults": ONGGI_FAULT=name=error or name=kill makes the step
// fail, or the process die by SIGKILL, before or after its deed) and a span of time (Spans, `onggi run --timing`).
// Names are dotted and stable: "run.network.attach". `undo.Names` lists those that a process has met, so that the
// crash walk can visit each one.
//
//	s := undo.New("run")
//	defer s.Undo(&err)
//	if err := s.Do("record", writeRecord, removeRecord); err != nil { return err }
//	...
//	s.Done()
package undo
