package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
)

// maxID is the largest user or group id: 2^32-1 means "no id" to chown(2) and setresuid(2).
const maxID = 1<<32 - 2

// User resolves user and group names as docker does from the text of /etc/passwd and /etc/group; numeric ids need no
// entry; ids above 2^32-2 are refused (CVE-2024-40635). A string of digits is always an id (CVE-2026-46680).
//
// user is "", "name|uid" or "name|uid:group|gid"; "" is uid 0. Without a group the primary group and the supplementary
// groups are those of the entry; with one there are no supplementary groups but groupAdd's. The primary group always is
// one of the additional (CVE-2022-36109: else a file's "deny this group" bits could be dodged). home is "/" where no
// entry names one. Lines that are not whole are skipped, never read as id 0.
func User(user string, groupAdd []string, passwd, group []byte) (uid, gid uint32, additional []uint32, home string, err error) {
	name, groupName, hasGroup := strings.Cut(user, ":")
	if strings.Contains(groupName, ":") || hasGroup && groupName == "" {
		return 0, 0, nil, "", invalid("--user", strconv.Quote(user), "it is not of the form user[:group]", "write --user NAME or --user UID:GID")
	}
	want, numeric, err := parseID("--user", name)
	if err != nil {
		return 0, 0, nil, "", err
	}
	if name == "" {
		numeric = true // uid 0
	}
	entry, found := findUser(passwd, name, want, numeric)
	if !found && !numeric {
		return 0, 0, nil, "", &errdefs.Error{
			Op: "run as user", What: strconv.Quote(name), Kind: errdefs.InvalidArgument,
			Why: fmt.Sprintf("unable to find user %s: no matching entries in the image's /etc/passwd", name),
			Fix: "use a user of the image, or a numeric id: --user UID[:GID]",
		}
	}
	uid, gid, home = want, 0, "/"
	if found {
		uid, gid = entry.uid, entry.gid
		if entry.home != "" {
			home = entry.home
		}
	}
	var members []uint32
	if hasGroup {
		if gid, err = findGroup("--user", groupName, group); err != nil {
			return 0, 0, nil, "", err
		}
	} else if found {
		members = groupsOf(group, entry.name)
	}
	additional = []uint32{gid}
	add := func(g uint32) {
		if !slices.Contains(additional, g) {
			additional = append(additional, g)
		}
	}
	for _, g := range members {
		add(g)
	}
	for _, n := range groupAdd {
		g, err := findGroup("--group-add", n, group)
		if err != nil {
			return 0, 0, nil, "", err
		}
		add(g)
	}
	return uid, gid, additional, home, nil
}

// parseID reads a string of digits as an id. numeric is false for names.
func parseID(flag, s string) (id uint32, numeric bool, err error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false, nil
	}
	n, perr := strconv.ParseUint(s, 10, 64)
	if perr != nil || n > maxID {
		return 0, true, invalid(flag, s, fmt.Sprintf("the id is not in the range 0 to %d", uint32(maxID)), "use a smaller id")
	}
	return uint32(n), true, nil
}

type account struct {
	name     string
	uid, gid uint32
	home     string
}

// lines calls fn with the fields of each line that has at least n; until it returns true.
func lines(text []byte, n int, fn func([]string) bool) {
	for len(text) > 0 {
		line := text
		if i := slices.Index(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		f := strings.Split(strings.TrimSpace(string(line)), ":")
		if len(f) >= n && !strings.HasPrefix(f[0], "#") && fn(f) {
			return
		}
	}
}

func findUser(passwd []byte, name string, id uint32, numeric bool) (a account, found bool) {
	lines(passwd, 4, func(f []string) bool { // name:password:uid:gid[:gecos[:home[:shell]]]
		u, ok1, err1 := parseID("", f[2])
		g, ok2, err2 := parseID("", f[3])
		if !ok1 || !ok2 || err1 != nil || err2 != nil || f[0] == "" {
			return false
		}
		if numeric && u != id || !numeric && f[0] != name {
			return false
		}
		a, found = account{name: f[0], uid: u, gid: g}, true
		if len(f) > 5 {
			a.home = f[5]
		}
		return true
	})
	return a, found
}

func findGroup(flag, name string, group []byte) (uint32, error) {
	id, numeric, err := parseID(flag, name)
	if err != nil || numeric {
		return id, err
	}
	found := false
	lines(group, 3, func(f []string) bool { // name:password:gid[:members]
		g, ok, err := parseID("", f[2])
		if f[0] != name || !ok || err != nil {
			return false
		}
		id, found = g, true
		return true
	})
	if !found {
		return 0, &errdefs.Error{
			Op: "use", What: flag + " " + strconv.Quote(name), Kind: errdefs.InvalidArgument,
			Why: fmt.Sprintf("unable to find group %s: no matching entries in the image's /etc/group", name),
			Fix: "use a group of the image, or a numeric id",
		}
	}
	return id, nil
}

func groupsOf(group []byte, user string) (gids []uint32) {
	lines(group, 4, func(f []string) bool {
		if g, ok, err := parseID("", f[2]); ok && err == nil && slices.Contains(strings.Split(f[3], ","), user) {
			gids = append(gids, g)
		}
		return false
	})
	return gids
}
