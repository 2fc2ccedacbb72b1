package engine

import (
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/spec"
)

// volumesFrom adds the binds and volumes of other containers to the configuration: CONTAINER[:ro|:rw] each. What the
// configuration mounts at a place itself stays; of several containers the last one counts. A tmpfs is its container's own.
func (e *Engine) volumesFrom(c Config) (Config, error) {
	if len(c.VolumesFrom) == 0 {
		return c, nil
	}
	taken := map[string]bool{}
	for _, m := range c.Mounts {
		taken[m.Target] = true
	}
	var order []string
	found := map[string]spec.Mount{}
	for _, s := range c.VolumesFrom {
		name, mode, given := strings.Cut(s, ":")
		readOnly := false
		for o := range strings.SplitSeq(mode, ",") {
			switch {
			case o == "ro":
				readOnly = true
			case o == "rw" && given, o == "z" && given, o == "Z" && given, !given:
			default:
				return c, invalid("--volumes-from", s, "there is no such mode", "write CONTAINER, CONTAINER:ro or CONTAINER:rw")
			}
		}
		r, err := e.get(name)
		if errdefs.Is(err, errdefs.NotFound) {
			return c, &errdefs.Error{Op: "use", What: "--volumes-from " + s, Kind: errdefs.InvalidArgument, Why: "there is no container " + name, Fix: "see: onggi ps -a"}
		}
		if err != nil {
			return c, err
		}
		mounts, err := spec.Effective(&r.Config.Config, &r.Image)
		if err != nil {
			return c, err
		}
		for _, m := range mounts {
			if m.Type == "tmpfs" || taken[m.Target] {
				continue
			}
			if m.Type == "volume" {
				m.Source = r.Volumes[m.Target]
			}
			m.ReadOnly = m.ReadOnly || readOnly
			if !slices.Contains(order, m.Target) {
				order = append(order, m.Target)
			}
			found[m.Target] = m
		}
	}
	c.Mounts = slices.Clone(c.Mounts)
	for _, t := range order {
		c.Mounts = append(c.Mounts, found[t])
	}
	return c, nil
}
