package cli

import (
	"context"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
)

func buildUpdate(a *app, c *cobra.Command) {
	var (
		f                 limitFlags
		label, labelUnset []string
		restart           string
	)
	c.Use = "update [FLAGS] CONTAINER [CONTAINER...]"
	c.Long = `Change limits and labels of containers, also while they run. What is not named stays as it is; a change that cannot be made is
refused, and then none is made.`
	c.Example = `  onggi update -m 1g --cpus 2 web db
  onggi update --pids-limit -1 --memory -1 web  no limits any more
  onggi update --label stage=live --label-rm draft web`
	f.registerAll(c.Flags())
	c.Flags().StringVar(&restart, "restart", "", "start it again when it ends: `policy` no, on-failure[:count], always or unless-stopped")
	c.Flags().StringArrayVarP(&label, "label", "l", nil, "label it with `KEY=VALUE`")
	c.Flags().StringArrayVar(&labelUnset, "label-rm", nil, "take the label `KEY` away")
	refuse(c.Flags(), []refusal{{"kernel-memory", "the kernel has no such limit since 5.16, and cgroup v2 never had", "use --memory, which counts the kernel's memory too"}})
	c.Args = takes(1, -1, "the names or ids of containers")
	c.RunE = func(c *cobra.Command, args []string) error {
		u, err := f.update(c.Flags().Changed)
		if err != nil {
			return err
		}
		for _, s := range label {
			k, v, err := parseKeyValue(s, true)
			if err != nil {
				return reading("--label", s, err)
			}
			if u.Labels == nil {
				u.Labels = map[string]string{}
			}
			u.Labels[k] = v
		}
		u.RemoveLabels = labelUnset
		if c.Flags().Changed("restart") {
			p, err := parseRestart(restart)
			if err != nil {
				return reading("--restart", restart, err)
			}
			u.Restart = &p
		}
		if c.Flags().NFlag() == 0 {
			return &errdefs.Error{Op: "update", Kind: errdefs.InvalidArgument, Why: "you must provide one or more flags when using this command", Fix: "all flags: onggi update --help"}
		}
		return a.each(c, args, func(ctx context.Context, name string) (string, error) {
			warnings, err := a.engine.Update(ctx, name, u)
			for _, w := range warnings {
				a.warn(w)
			}
			return name, err
		})
	}
}

// update reads the flags as changes.
func (f *limitFlags) update(given func(string) bool) (u engine.Update, err error) {
	for _, x := range []struct {
		flag, value string
		unlimited   int64 // what -1 means; 0: it is a number like others
		to          **int64
	}{
		{"memory", f.memory, 0, &u.Memory}, {"memory-swap", f.memorySwap, -1, &u.MemorySwap}, {"memory-reservation", f.memoryReservation, 0, &u.MemoryReservation},
	} {
		if !given(x.flag) {
			continue
		}
		n := x.unlimited
		if x.value != "-1" {
			if n, err = parseSize(x.value); err != nil {
				return u, reading("--"+x.flag, x.value, err)
			}
		}
		*x.to = &n
	}
	if given("cpus") {
		var n int64
		if f.cpus != "0" {
			if n, err = parseCPUs(f.cpus); err != nil {
				return u, reading("--cpus", f.cpus, err)
			}
		}
		u.NanoCPUs = &n
	}
	var shares, weight, pids, period, quota, rtPeriod, rtRuntime int64
	if err := numbers([]numberFlag{
		{"cpu-shares", f.cpuShares, 0, 262144, &shares},
		{"blkio-weight", f.blkioWeight, 10, 1000, &weight},
		{"pids-limit", f.pidsLimit, -1, 4194304, &pids},
		{"cpu-period", f.cpuPeriod, 1000, 1000000, &period},
		{"cpu-quota", f.cpuQuota, -1, 1 << 40, &quota},
		{"cpu-rt-period", f.cpuRtPeriod, 1, 1 << 40, &rtPeriod},
		{"cpu-rt-runtime", f.cpuRtRuntime, 0, 1 << 40, &rtRuntime},
	}, given); err != nil {
		return u, err
	}
	for _, x := range []struct {
		flag string
		n    int64
		to   **int64
	}{{"pids-limit", pids, &u.PidsLimit}, {"cpu-period", period, &u.CPUPeriod}, {"cpu-quota", quota, &u.CPUQuota}, {"cpu-rt-period", rtPeriod, &u.CPURealtimePeriod}, {"cpu-rt-runtime", rtRuntime, &u.CPURealtimeRuntime}} {
		if given(x.flag) {
			*x.to = &x.n
		}
	}
	if given("cpu-shares") {
		n := uint64(shares)
		u.CPUShares = &n
	}
	if given("blkio-weight") {
		n := uint16(weight)
		u.BlkioWeight = &n
	}
	for _, x := range []struct {
		flag, value string
		to          **string
	}{{"cpuset-cpus", f.cpusetCPUs, &u.CpusetCpus}, {"cpuset-mems", f.cpusetMems, &u.CpusetMems}} {
		if !given(x.flag) {
			continue
		}
		if x.value != "" {
			if err := parseCPUSet(x.value); err != nil {
				return u, reading("--"+x.flag, x.value, err)
			}
		}
		*x.to = &x.value
	}
	return u, nil
}
