package engine

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/spec"
	"github.com/opencontainers/go-digest"
)

// Filters choose containers or images by docker's conditions: the values of one key are alternatives, but all labels must
// be there, and all keys must agree.
type Filters map[string][]string

// badFilter is the error of a filter.
func badFilter(key, value, why, fix string) error {
	return &errdefs.Error{Op: "use", What: "the filter " + key + "=" + value, Kind: errdefs.InvalidArgument, Why: why, Fix: fix}
}

// unknown refuses keys that are none.
func (f Filters) unknown(known ...string) error {
	for _, key := range slices.Sorted(maps.Keys(f)) {
		if !slices.Contains(known, key) {
			return badFilter(key, strings.Join(f[key], ","), "there is no such filter", "use one of: "+strings.Join(known, ", "))
		}
	}
	return nil
}

// any reports whether a condition holds for one of the values, or there are none.
func (f Filters) any(key string, is func(string) bool) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], is)
}

// labelled reports whether all labels are there: KEY, or KEY=VALUE.
func (f Filters) labelled(have map[string]string) bool {
	return !slices.ContainsFunc(f["label"], func(want string) bool {
		key, value, given := strings.Cut(want, "=")
		v, ok := have[key]
		return !ok || given && v != value
	})
}

// ListOptions of ListWhere.
type ListOptions struct {
	All     bool // also containers that do not run; a filter by status and Last say so too
	Last    int  // only the newest ones
	Filters Filters
}

// statuses are what the filter status takes.
var statuses = []string{"created", "restarting", "running", "removing", "paused", "exited", "dead"}

// ListWhere returns the chosen containers, newest first. The records are read once, and no lock is taken. InvalidArgument
// for a filter that is none; NotFound for a container that before or since name.
func (e *Engine) ListWhere(o ListOptions) ([]*Container, error) {
	f := o.Filters
	if _, ok := f["is-task"]; ok {
		return nil, badFilter("is-task", strings.Join(f["is-task"], ","), "there are no swarm services here whose tasks containers could be", "leave it out")
	}
	if _, ok := f["isolation"]; ok {
		return nil, badFilter("isolation", strings.Join(f["isolation"], ","), "it is about containers of Windows", "leave it out")
	}
	if err := f.unknown("ancestor", "before", "exited", "expose", "health", "id", "label", "name", "network", "publish", "since", "status", "volume"); err != nil {
		return nil, err
	}
	w := where{f: f}
	for _, s := range f["status"] {
		if !slices.Contains(statuses, s) {
			return nil, badFilter("status", s, "there is no such status", "use one of: "+strings.Join(statuses, ", "))
		}
	}
	for _, s := range f["health"] {
		if !slices.Contains([]string{"starting", "healthy", "unhealthy", "none"}, s) {
			return nil, badFilter("health", s, "there is no such health", "use starting, healthy, unhealthy or none")
		}
	}
	for _, s := range f["exited"] {
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, badFilter("exited", s, "it is not an exit code", "for example: exited=0")
		}
		w.exited = append(w.exited, n)
	}
	var err error
	if w.names, err = patterns("name", f["name"]); err != nil {
		return nil, err
	}
	if w.ids, err = patterns("id", f["id"]); err != nil {
		return nil, err
	}
	for key, to := range map[string]*[]network.Port{"publish": &w.publish, "expose": &w.expose} {
		for _, s := range f[key] {
			ports, err := network.ParsePort(s)
			if err != nil || strings.Contains(s, ":") {
				return nil, badFilter(key, s, "it is not a port", "write 80, 53/udp or 8000-8010/tcp")
			}
			*to = append(*to, ports...)
		}
	}
	for key, to := range map[string]*time.Time{"before": &w.before, "since": &w.since} {
		for _, name := range f[key] {
			k, err := e.Get(name)
			if err != nil {
				return nil, err
			}
			if to.IsZero() || key == "before" && k.Created.Before(*to) || key == "since" && k.Created.After(*to) {
				*to = k.Created
			}
		}
	}
	if len(f["ancestor"]) > 0 {
		if w.ancestors, err = e.descendants(f["ancestor"]); err != nil {
			return nil, err
		}
	}
	all := o.All || o.Last > 0 || len(f["status"]) > 0
	list, err := e.list(func(r *record) bool {
		return r.Config.Build == "" && (all || r.Status == Running || r.Status == Restarting) && w.chosen(r)
	})
	if o.Last > 0 && len(list) > o.Last {
		list = list[:o.Last]
	}
	return list, err
}

// patterns reads values that are taken exactly or as regular expressions, as docker does.
func patterns(key string, values []string) (list []*regexp.Regexp, err error) {
	for _, v := range values {
		if len(v) > 1024 {
			return nil, badFilter(key, v[:40], "it is longer than 1024 bytes", "write a shorter one")
		}
		p, err := regexp.Compile(v)
		if err != nil {
			return nil, badFilter(key, v, "it is neither a name nor a regular expression", "for example: "+key+"=^web")
		}
		list = append(list, p)
	}
	return list, nil
}

// where is a compiled filter of containers.
type where struct {
	f               Filters
	names, ids      []*regexp.Regexp
	exited          []int
	publish, expose []network.Port
	before, since   time.Time
	ancestors       map[digest.Digest]bool // nil: any
}

func (w *where) chosen(r *record) bool {
	k := &r.Container
	switch {
	case !w.before.IsZero() && !k.Created.Before(w.before), !w.since.IsZero() && !k.Created.After(w.since):
		return false
	case len(w.names) > 0 && !slices.ContainsFunc(w.names, func(p *regexp.Regexp) bool {
		return p.MatchString(k.Config.Name) || p.MatchString("/"+k.Config.Name)
	}):
		return false
	case len(w.ids) > 0 && !slices.ContainsFunc(w.ids, func(p *regexp.Regexp) bool { return p.MatchString(k.ID) }):
		return false
	case len(w.exited) > 0 && (k.Status != Exited || k.Exit == nil || !slices.Contains(w.exited, k.Exit.Code)):
		return false
	case w.ancestors != nil && !w.ancestors[k.ImageID]:
		return false
	case len(w.publish) > 0 && !overlap(w.publish, k.published()):
		return false
	case len(w.expose) > 0 && !overlap(w.expose, r.exposed()):
		return false
	}
	return w.f.any("status", func(s string) bool { return s == string(k.State()) }) &&
		w.f.any("health", func(s string) bool { return s == k.HealthText() }) &&
		w.f.any("network", func(s string) bool { return slices.Contains(k.networkNames(), s) }) &&
		w.f.any("volume", r.hasVolume) && (len(w.f["label"]) == 0 || w.f.labelled(k.Labels()))
}

// published are the ports as they are published, or will be.
func (c *Container) published() []network.Port {
	if c.Network != nil && len(c.Network.Ports) > 0 {
		return c.Network.Ports
	}
	return c.Config.Ports
}

// exposed are the ports that the image, --expose and -p name.
func (r *record) exposed() []network.Port {
	ports := slices.Clone(r.Config.Ports)
	for _, text := range append(slices.Collect(maps.Keys(r.Image.ExposedPorts)), r.Config.Expose...) {
		if p, err := network.ParsePort(text); err == nil {
			ports = append(ports, p...)
		}
	}
	return ports
}

// overlap reports whether a wanted port is among those of a container.
func overlap(want, have []network.Port) bool {
	return slices.ContainsFunc(want, func(w network.Port) bool {
		return slices.ContainsFunc(have, func(p network.Port) bool { return p.ContainerPort == w.ContainerPort && p.Protocol == w.Protocol })
	})
}

// networkNames are the names and ids of the networks that the container is on.
func (c *Container) networkNames() []string {
	names := []string{c.Config.Network}
	if c.Network != nil {
		for _, n := range c.Network.Networks {
			names = append(names, n.Network, n.NetworkID)
		}
	}
	return names
}

// hasVolume finds a mount by its source (a volume's name, a path) or by its place.
func (r *record) hasVolume(s string) bool {
	for target, name := range r.Volumes {
		if target == s || name == s {
			return true
		}
	}
	return slices.ContainsFunc(r.Config.Mounts, func(m spec.Mount) bool {
		return m.Target == s || m.Source == s || path.IsAbs(s) && m.Source == path.Clean(s)
	})
}

// descendants are the ids of the named images and of those that stand on their layers. A name that is no image's has none.
func (e *Engine) descendants(names []string) (map[digest.Digest]bool, error) {
	store, err := e.Images()
	if err != nil {
		return nil, err
	}
	all, err := store.List()
	if err != nil {
		return nil, err
	}
	ids := map[digest.Digest]bool{}
	for _, n := range names {
		base, err := store.Get(n)
		if err != nil {
			if d, derr := digest.Parse(n); derr == nil {
				ids[d] = true // an image that was removed by force
			}
			continue
		}
		ids[base.ID] = true
		for _, i := range all {
			if len(base.DiffIDs) > 0 && len(i.DiffIDs) >= len(base.DiffIDs) && slices.Equal(i.DiffIDs[:len(base.DiffIDs)], base.DiffIDs) {
				ids[i.ID] = true
			}
		}
	}
	return ids, nil
}

// ListImages returns the chosen images. Filters: before and since (an image), dangling, label, reference (a name with * and
// ?), until (a time, as parse reads it). For a reference only the names that it matches are left of an image.
func (e *Engine) ListImages(f Filters, parse func(string) (time.Time, error)) ([]*image.Image, error) {
	if err := f.unknown("before", "dangling", "label", "reference", "since", "until"); err != nil {
		return nil, err
	}
	store, err := e.Images()
	if err != nil {
		return nil, err
	}
	var before, since time.Time
	for key, to := range map[string]*time.Time{"before": &before, "since": &since} {
		for _, name := range f[key] {
			i, err := store.Get(name)
			if err != nil {
				return nil, err
			}
			*to = i.Created
		}
	}
	for _, s := range f["until"] {
		t, err := parse(s)
		if err != nil {
			return nil, badFilter("until", s, err.Error(), "for example: until=24h, or until=2026-01-31T12:00:00")
		}
		if before.IsZero() || t.Before(before) {
			before = t
		}
	}
	var dangling []bool
	for _, s := range f["dangling"] {
		b, err := strconv.ParseBool(s)
		if err != nil {
			return nil, badFilter("dangling", s, "it is neither true nor false", "write dangling=true")
		}
		dangling = append(dangling, b)
	}
	for _, s := range f["reference"] {
		if _, err := path.Match(s, ""); err != nil {
			return nil, badFilter("reference", s, "it is not a pattern", "for example: reference='debian*:1?'")
		}
	}
	list, err := store.List()
	if err != nil {
		return nil, err
	}
	var out []*image.Image
	for _, i := range list {
		switch {
		case !before.IsZero() && !i.Created.Before(before), !since.IsZero() && !i.Created.After(since):
			continue
		case len(dangling) > 0 && !slices.Contains(dangling, len(i.Names) == 0):
			continue
		case len(f["label"]) > 0 && !f.labelled(i.Config.Config.Labels):
			continue
		}
		if len(f["reference"]) > 0 {
			k := *i
			k.Names = slices.DeleteFunc(slices.Clone(i.Names), func(n reference.Reference) bool {
				return !slices.ContainsFunc(f["reference"], func(p string) bool { return matchReference(p, n) })
			})
			if len(k.Names) == 0 {
				continue
			}
			i = &k
		}
		out = append(out, i)
	}
	return out, nil
}

// matchReference matches a pattern with an image's name as it is shown and in full, with its tag and without, as docker
// does (path.Match: a * is no slash).
func matchReference(pattern string, n reference.Reference) bool {
	bare := reference.Reference{Domain: n.Domain, Path: n.Path}
	for _, s := range []string{n.Familiar(), bare.Familiar(), n.String(), bare.String(), fmt.Sprintf("%s:%s", bare.Familiar(), n.Tag)} {
		if ok, err := path.Match(pattern, s); err == nil && ok {
			return true
		}
	}
	return false
}

// HealthText is the container's health in docker's words; "none" without a health check.
func (c *Container) HealthText() string {
	if c.Health == nil || c.Health.Status == "" {
		return "none"
	}
	return c.Health.Status
}

// Labels are the container's labels and those of its image.
func (c *Container) Labels() map[string]string {
	if len(c.ImageLabels) == 0 {
		return c.Config.Labels
	}
	l := maps.Clone(c.ImageLabels)
	maps.Copy(l, c.Config.Labels)
	return l
}
