package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network"
)

// publishAll are the container's published ports and those that the image and --expose name, each on a free port of the
// host.
func (r *record) publishAll() ([]network.Port, error) {
	ports := slices.Clone(r.Config.Ports)
	for _, text := range append(slices.Sorted(maps.Keys(r.Image.ExposedPorts)), r.Config.Expose...) {
		list, err := network.ParsePort(text)
		if err != nil {
			return nil, fmt.Errorf("the exposed port %q: %w", text, err)
		}
		for _, p := range list {
			if !slices.ContainsFunc(ports, func(o network.Port) bool { return o.ContainerPort == p.ContainerPort && o.Protocol == p.Protocol }) {
				ports = append(ports, p)
			}
		}
	}
	return ports, nil
}

// pidNamespace is the path of the process namespace that --pid container:NAME names; "" when it does not.
func (e *Engine) pidNamespace(mode string) (string, error) {
	name, ok := strings.CutPrefix(mode, "container:")
	if !ok {
		return "", nil
	}
	k, err := e.Get(name)
	if err != nil {
		return "", err
	}
	if k.Status != Running {
		return "", &errdefs.Error{
			Op: "use", What: "--pid " + mode, Kind: errdefs.Conflict, Why: "cannot join the processes of a container that does not run",
			Fix: "start it: onggi start " + name,
		}
	}
	return fmt.Sprintf("/proc/%d/ns/pid", k.Pid), nil
}
