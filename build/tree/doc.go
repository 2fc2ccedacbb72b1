// Package tree reads, copies and identifies the files of a build: the context, a stage's result, what ADD unpacks.
//
// A View is a directory handle with a filter: what .dockerignore leaves out is not there, whoever asks. All names in it
// are resolved by the kernel inside the handle (package pathrs), because a context and a base image belong to somebody
// else: a link that points out of the context (CVE-2024-23652, CVE-2024-23653 are of that class) ends inside of it.
//
//	View.Select   names and wildcards -> files
//	View.Digest   what a selection holds, as one digest: the part of a cache key that stands for the content
//	Copy, Mkdir, Mkfile, Symlink, Remove: the file operations of a graph, on a writable tree's handle
//
// The rules are those of BuildKit's COPY and ADD (docs.docker.com/reference/dockerfile, and behaviour of
// github.com/tonistiigi/fsutil/copy), which differ from cp(1)'s.
//
// It leaves to others: where trees come from and become layers (package build), names of users (the caller gives ids).
package tree
