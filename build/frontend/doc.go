// Package frontend is the conversation between a build and the process that turns a Dockerfile into a graph.
//
// BuildKit's Dockerfile frontend is 300 packages and several milliseconds of start-up, and it parses text that we do not
// trust: it runs in a process of its own (cmd/onggi-build) that has our messages on its standard input and output and
// nothing else. That process asks, this side answers:
//
//	onggi                                onggi-build
//	Request{options}            ->
//	                            <-       resolve an image's configuration
//	answer                      ->
//	                            <-       read a file, stat it or list a directory of a graph's result
//	answer                      ->
//	                            <-       warning (no answer)
//	                            <-       result: a graph, an image configuration for each platform, or an error
//
// A message is a line of JSON of at most MaxMessage bytes. Several questions may be open at once; answers carry the
// question's number. Whatever breaks these rules ends the conversation.
//
// Lifecycle: Run starts the process, converses until the result, and waits for the process's end; when ctx ends, the
// process is killed. Serve is the other side.
//
// It leaves to others: what the options mean (build/dockerfile: they are those of BuildKit's frontend), and all answers
// (Backend, which package build implements).
package frontend
