package engine

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/spec"
)

func TestListWhere(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	make := func(name string, change func(*Config)) string {
		c := config("sleep", "1000")
		c.Name = name
		change(&c)
		k, err := h.Create(ctx, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		return k.ID
	}
	first := make("web-one", func(c *Config) {
		c.Labels = map[string]string{"stage": "live", "a": "1"}
		c.Expose = []string{"80", "7000-7002/udp"}
	})
	make("web-two", func(c *Config) {
		c.Image, c.Labels, c.Network, c.Ports = "plain", map[string]string{"stage": "test"}, "bridge", []network.Port{{ContainerPort: 443, Protocol: "tcp"}}
	})
	make("db", func(c *Config) { c.Mounts = []spec.Mount{{Type: "volume", Source: "data", Target: "/var/lib/db"}} })
	run := func(name string) {
		s, err := h.Start(ctx, name, StartOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Client.Close()
	}
	run("web-one")
	run("db")
	if err := h.Kill(ctx, "db", 9); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Wait(ctx, "db"); err != nil {
		t.Fatal(err)
	}
	img, err := h.Images()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := img.Get("plain")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    ListOptions
		want string // newest first
	}{
		{ListOptions{}, "web-one"},
		{ListOptions{All: true}, "db web-two web-one"},
		{ListOptions{Last: 2}, "db web-two"},
		{ListOptions{All: true, Filters: Filters{"name": {"web"}}}, "web-two web-one"},
		{ListOptions{All: true, Filters: Filters{"name": {"^/?web-one$", "db"}}}, "db web-one"},
		{ListOptions{All: true, Filters: Filters{"id": {first[:12]}}}, "web-one"},
		{ListOptions{All: true, Filters: Filters{"label": {"stage"}}}, "web-two web-one"},
		{ListOptions{All: true, Filters: Filters{"label": {"stage=live", "a=1"}}}, "web-one"},
		{ListOptions{All: true, Filters: Filters{"label": {"stage=live", "a=2"}}}, ""},
		{ListOptions{Filters: Filters{"status": {"exited"}}}, "db"},
		{ListOptions{Filters: Filters{"status": {"created", "running"}}}, "web-two web-one"},
		{ListOptions{All: true, Filters: Filters{"exited": {"137"}}}, "db"},
		{ListOptions{All: true, Filters: Filters{"exited": {"0"}}}, ""},
		{ListOptions{All: true, Filters: Filters{"ancestor": {"plain"}}}, "web-two"},
		{ListOptions{All: true, Filters: Filters{"ancestor": {plain.ID.String()}}}, "web-two"},
		{ListOptions{All: true, Filters: Filters{"ancestor": {"nosuch"}}}, ""},
		{ListOptions{All: true, Filters: Filters{"before": {"web-two"}}}, "web-one"},
		{ListOptions{All: true, Filters: Filters{"since": {"web-one"}}}, "db web-two"},
		{ListOptions{All: true, Filters: Filters{"network": {"bridge"}}}, "web-two"},
		{ListOptions{All: true, Filters: Filters{"volume": {"data"}}}, "db"},
		{ListOptions{All: true, Filters: Filters{"volume": {"/var/lib/db"}}}, "db"},
		{ListOptions{All: true, Filters: Filters{"volume": {"/data"}}}, "db web-one"}, // of the image box
		{ListOptions{All: true, Filters: Filters{"publish": {"443"}}}, "web-two"},
		{ListOptions{All: true, Filters: Filters{"publish": {"80"}}}, ""},
		{ListOptions{All: true, Filters: Filters{"expose": {"80/tcp"}}}, "web-one"},
		{ListOptions{All: true, Filters: Filters{"expose": {"7001/udp"}}}, "web-one"},
		{ListOptions{All: true, Filters: Filters{"health": {"none"}}}, "db web-two web-one"},
		{ListOptions{All: true, Filters: Filters{"health": {"healthy"}}}, ""},
	} {
		list, err := h.ListWhere(c.o)
		var names []string
		for _, k := range list {
			names = append(names, k.Config.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != c.want {
			t.Errorf("%+v: got %q, %v; want %q", c.o, got, err, c.want)
		}
	}
	for key, value := range map[string]string{
		"is-task": "true", "isolation": "process", "color": "red", "status": "sleeping", "exited": "well", "health": "fine", "publish": "x", "name": "[", "before": "nosuch",
	} {
		if _, err := h.ListWhere(ListOptions{Filters: Filters{key: {value}}}); !errdefs.Is(err, errdefs.InvalidArgument) && !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%s=%s: %v, want it refused", key, value, err)
		}
	}
	size, err := h.Size(&Container{ID: first, ImageID: plain.ID})
	if err != nil || size.Total <= size.Layer || size.Total < plain.Size {
		t.Errorf("size: %+v, %v", size, err)
	}
}

func TestListImages(t *testing.T) {
	h := newHouse(t)
	names := func(f Filters) string {
		t.Helper()
		list, err := h.ListImages(f, func(string) (time.Time, error) { return time.Now().Add(time.Hour), nil })
		if err != nil {
			t.Errorf("%v: %v", f, err)
		}
		var out []string
		for _, i := range list {
			for _, n := range i.Names {
				out = append(out, n.Familiar())
			}
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		f    Filters
		want string
	}{
		{nil, "box:latest plain:latest"},
		{Filters{"reference": {"b*"}}, "box:latest"},
		{Filters{"reference": {"*:latest"}}, "box:latest plain:latest"},
		{Filters{"reference": {"docker.io/library/pl?in"}}, "plain:latest"},
		{Filters{"reference": {"x"}}, ""},
		{Filters{"dangling": {"true"}}, ""},
		{Filters{"dangling": {"false"}}, "box:latest plain:latest"},
		{Filters{"label": {"x"}}, ""},
		{Filters{"until": {"1h"}}, "box:latest plain:latest"},
	} {
		if got := names(c.f); got != c.want {
			t.Errorf("%v: got %q, want %q", c.f, got, c.want)
		}
	}
	for key, value := range map[string]string{"color": "red", "dangling": "perhaps", "reference": "[", "before": "nosuch"} {
		if _, err := h.ListImages(Filters{key: {value}}, nil); err == nil {
			t.Errorf("%s=%s: it is taken", key, value)
		}
	}
}
