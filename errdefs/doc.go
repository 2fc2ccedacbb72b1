// Package errdefs is the one vocabulary of failure in Onggi.
//
// Every error that reaches a user says what was being done to which object (Op, What), why it failed (Why, Err) and
// the next command to type (Fix). Packages return *Error where they know those facts and wrap with fmt.Errorf("%w")
// elsewhere; they never log what they return. Kind is the machine-readable part: the tables in this package turn it
// into exit codes, HTTP and gRPC codes, so no other package holds such a table.
//
// An Error crosses process borders (runtime -> monitor -> engine) as JSON; the wrapped error crosses as its text.
// Only the command line prints Fix.
package errdefs
