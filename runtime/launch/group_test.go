package launch

import (
	"strings"
	"testing"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

func TestDeviceRules(t *testing.T) {
	h := newHost(t)
	l, err := layout()
	if err != nil {
		t.Skip(err)
	}
	if _, ok := l.Controllers["devices"]; !ok && !l.V2 {
		t.Skip("this host has no devices hierarchy")
	}
	const script = "cd /tmp; for n in 'n c 1 3' 'k c 1 11' 'l b 7 0'; do set -- $n; busybox mknod $1 $2 $3 $4 && (: <$1) 2>/dev/null && echo $1; done; rm -f n k l; :"
	all, major, minor := runspec.LinuxDeviceCgroup{Allow: true, Access: "rwm"}, int64(1), int64(11)
	for _, c := range []struct {
		name string
		r    *runspec.LinuxResources
		want string
	}{
		{"no resources", nil, "n\n"},
		{"no rule", &runspec.LinuxResources{}, "n\n"},
		{"one more", &runspec.LinuxResources{Devices: []runspec.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "r"}}}, "n\nk\n"},
		{"all", &runspec.LinuxResources{Devices: []runspec.LinuxDeviceCgroup{all}}, "n\nk\n"},
	} {
		s := h.spec(script)
		s.Linux.Resources = c.r
		for _, set := range []*[]string{&s.Process.Capabilities.Bounding, &s.Process.Capabilities.Effective, &s.Process.Capabilities.Permitted} {
			*set = append(*set, "CAP_MKNOD", "CAP_SYSLOG", "CAP_DAC_OVERRIDE")
		}
		out, _, err := h.run(h.options(s))
		out = strings.ReplaceAll(out, "l\n", "") // a loop device may have nothing behind it
		if err != nil || out != c.want {
			t.Errorf("%s: got %q (%v), want %q", c.name, out, err, c.want)
		}
	}
}
