// Package build performs build graphs: each vertex once, branches side by side, what was done before not again.
//
//	Build:  frontend -> graph -> (key -> cached? -> perform -> layer -> record)* -> image
//
// A vertex's result is a list of layers, or a view of a user's directory. Its key is made of what it does and of the
// content of what it reads (parts), so its inputs come first; a step that comes to the same layers as before lets all that
// follows hit, whatever made it run again. Two builds that need the same step wait for each other (cache.Store.Lock).
//
// A step is a container of the engine (engine.Config.Build): RUN is run in it, COPY and ADD write to its tree; what it
// changed is packed into a layer, with the times of what is new set to the epoch, so that the same inputs give the same
// digests on another day. What a killed build leaves is a container of a build whose lock nobody holds: the next build
// removes it.
//
// Privileges are decided here and nowhere else: the network of the host and a privileged command need Options.Allow, an
// address that is not public needs it too. Secrets are files on the volatile root, mounted for one command; neither key
// nor record nor layer holds them.
//
// What it leaves to others: the language (build/dockerfile in onggi-build), records (build/cache), files (build/tree),
// the container's life (engine), images and layers (image, snapshot), what is shown (Progress).
//
// The process is in a mount namespace of its own (package cli starts it so): trees that a RUN mounts are mounted there and
// vanish with it.
package build
