// Package cli is the command line: flags become engine.Config, results become text. It decides nothing that another
// front door of the engine would have to decide as well.
//
// A command's life: Main looks at the first word that is not a flag and builds that one command only (a tree of all
// commands costs time in every start), parses, opens the engine when the command first asks for it, and turns the error
// that comes back into two lines on stderr and an exit code:
//
//	onggi: cannot run ngnix: the registry has no repository docker.io/library/ngnix
//	  fix: check the spelling of the name and the tag
//
// Exit codes are docker's: 125 for a flag that is wrong and for the engine's own failures in run and create, 126 and
// 127 when the container's command cannot be executed or found, the container's own code after that, 128+n for a
// client that signal n ended, 1 for every other failure.
//
// Streams of a container are never copied here: run and start hand their own descriptors to the container's monitor
// (engine.StartOptions), and exec replaces itself by the runtime.
//
// What is parsed by hand here is parsed by small pure functions (parse*.go), each with a table test and a fuzz target.
// Nothing at package level is computed at start: no regular expressions, no maps.
package cli
