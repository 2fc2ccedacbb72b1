// Package pathrs resolves paths that we do not trust inside a directory handle that nothing escapes.
//
// A root file system, a layer, a build context or a volume belongs to somebody else: every symbolic link in it is that
// somebody's choice, and it may change between two looks. Nine of runc's CVEs (2019-19921, 2021-30465 and on) came
// from joining such a path to a prefix and then using the string. Here a tree is an open directory, a path in it is
// called unsafePath, and what comes back is another handle, resolved by the kernel in one step: openat2(2) with
// RESOLVE_IN_ROOT (absolute links and ".." stay inside, as after chroot) or RESOLVE_BENEATH (they are refused), always
// with RESOLVE_NO_MAGICLINKS. When openat2 refuses there is no fallback: not an older call, not a second look.
//
// Lifecycle: OpenRoot -> (Open, MkdirAll, ReadFile, Readlink)* -> Close. A handle stays valid when the tree is renamed.
//
// What it leaves to others: whether the caller may touch the object at all, mounts (package mount), and ownership.
// The package is on the thin side: it imports nothing but os, errdefs and x/sys/unix.
package pathrs
