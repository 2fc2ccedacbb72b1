package cli

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/spec"
	"github.com/onggi/onggi/undo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var noon = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

func someContainers() []*engine.Container {
	web := &engine.Container{
		ID: strings.Repeat("ab12", 16), Created: noon.Add(-2 * time.Hour), Status: engine.Running, Pid: 4242, StartedAt: noon.Add(-90 * time.Minute),
		ImageID: digest.Digest("sha256:" + strings.Repeat("0f", 32)), Command: []string{"nginx", "-g", "daemon off; master on"},
		Network: &network.Attachment{
			Bridge: "onggi0", IPv4: netip.MustParsePrefix("172.29.0.2/16"), Gateway: netip.MustParseAddr("172.29.0.1"), MAC: "02:42:ac:1d:00:02",
			Ports: []network.Port{
				{HostPort: 8081, ContainerPort: 81, Protocol: "tcp"},
				{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
				{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 53, ContainerPort: 53, Protocol: "udp"},
				{HostIP: netip.MustParseAddr("::1"), HostPort: 9, ContainerPort: 9, Protocol: "tcp"},
			},
		},
		Volumes: map[string]string{"/var/lib": "data", "/cache": strings.Repeat("9", 64)},
	}
	web.Config.Name, web.Config.Image, web.Config.Network = "web", "nginx:1.27", "bridge"
	web.Config.Memory, web.Config.NanoCPUs = 256<<20, 5e8
	web.Config.Mounts = []spec.Mount{{Type: "bind", Source: "/srv", Target: "/srv", ReadOnly: true}, {Type: "volume", Source: "data", Target: "/var/lib"}, {Type: "tmpfs", Target: "/run", TmpfsSize: 1 << 20}}
	web.Config.Ports = []network.Port{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}
	web.Config.Labels = map[string]string{"b": "2", "a": "1"}
	web.Config.Env = []string{"A=user"}
	job := &engine.Container{
		ID: strings.Repeat("cd34", 16), Created: noon.Add(-50 * time.Hour), Status: engine.Exited, Command: []string{"false"},
		Exit: &monitor.Exit{Code: 137, Signal: 9, OOMKilled: true, StartedAt: noon.Add(-49 * time.Hour), FinishedAt: noon.Add(-48 * time.Hour)},
	}
	job.Config.Name, job.Config.Image, job.Config.Network = "job", "debian", "none"
	made := &engine.Container{ID: strings.Repeat("ef56", 16), Created: noon, Status: engine.Created, Command: []string{"\x1b[31mred"}}
	made.Config.Name, made.Config.Image, made.Config.Network = "made", "debian", "host"
	return []*engine.Container{web, job, made}
}

func TestPsTable(t *testing.T) {
	var rows []containerRow
	for _, k := range someContainers() {
		rows = append(rows, newContainerRow(k, noon, false))
	}
	columns := []column[containerRow]{
		{"CONTAINER ID", func(r containerRow) string { return r.ID }},
		{"IMAGE", func(r containerRow) string { return r.Image }},
		{"COMMAND", func(r containerRow) string { return r.Command }},
		{"CREATED", func(r containerRow) string { return r.RunningFor }},
		{"STATUS", func(r containerRow) string { return r.Status }},
		{"NAMES", func(r containerRow) string { return r.Names }},
	}
	got := table(rows, columns)
	want := `CONTAINER ID   IMAGE        COMMAND                  CREATED                  STATUS                    NAMES
ab12ab12ab12   nginx:1.27   "nginx -g "daemon of…"   2 hours ago              Up 2 hours                web
cd34cd34cd34   debian       "false"                  2 days ago               Exited (137) 2 days ago   job
ef56ef56ef56   debian       "?[31mred"               Less than a second ago   Created                   made
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if want := "[::1]:9->9/tcp, 127.0.0.1:53->53/udp, 0.0.0.0:8080-8081->80-81/tcp"; !sameList(rows[0].Ports, want) {
		t.Errorf("ports %q, want %q", rows[0].Ports, want)
	}
	if rows[0].Labels != "a=1,b=2" || rows[1].Labels != "" {
		t.Errorf("labels %q, %q", rows[0].Labels, rows[1].Labels)
	}
	whole := newContainerRow(someContainers()[0], noon, true)
	if len(whole.ID) != 64 || !strings.Contains(whole.Command, "master on") {
		t.Errorf("--no-trunc: %+v", whole)
	}
}

func sameList(a, b string) bool {
	count := map[string]int{}
	for _, s := range strings.Split(a, ", ") {
		count[s]++
	}
	for _, s := range strings.Split(b, ", ") {
		count[s]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

func someImages(t *testing.T) []*image.Image {
	name := func(s string) reference.Reference {
		r, err := reference.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	d := digest.Digest("sha256:" + strings.Repeat("77", 32))
	return []*image.Image{
		{
			ID: digest.Digest("sha256:" + strings.Repeat("1a", 32)), Names: []reference.Reference{name("debian:12"), name("127.0.0.1:5000/base:stable")},
			Target: ocispec.Descriptor{Digest: d}, Size: 116_432_100, Created: noon.Add(-21 * 24 * time.Hour), DiffIDs: []digest.Digest{d},
		},
		{ID: digest.Digest("sha256:" + strings.Repeat("2b", 32)), Size: 999, Created: noon.Add(-time.Minute)},
	}
}

func TestImagesTable(t *testing.T) {
	rows := imageRows(someImages(t), noon, false)
	got := table(rows, []column[imageRow]{
		{"REPOSITORY", func(r imageRow) string { return r.Repository }},
		{"TAG", func(r imageRow) string { return r.Tag }},
		{"IMAGE ID", func(r imageRow) string { return r.ID }},
		{"CREATED", func(r imageRow) string { return r.CreatedSince }},
		{"SIZE", func(r imageRow) string { return r.Size }},
	})
	want := `REPOSITORY            TAG       IMAGE ID       CREATED              SIZE
<none>                <none>    2b2b2b2b2b2b   About a minute ago   999B
127.0.0.1:5000/base   stable    1a1a1a1a1a1a   3 weeks ago          116MB
debian                12        1a1a1a1a1a1a   3 weeks ago          116MB
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	only, err := ofRepository(imageRows(someImages(t), noon, false), "debian")
	if err != nil || len(only) != 1 || only[0].Tag != "12" {
		t.Errorf("images debian: %+v, %v", only, err)
	}
	if none, _ := ofRepository(imageRows(someImages(t), noon, false), "debian:13"); len(none) != 0 {
		t.Errorf("images debian:13: %+v", none)
	}
}

func TestInspectContainer(t *testing.T) {
	img := someImages(t)[0]
	img.Config.Config = ocispec.ImageConfig{Env: []string{"PATH=/bin", "A=image"}, Cmd: []string{"sh"}, WorkingDir: "/w", Labels: map[string]string{"a": "image", "c": "3"}}
	b, err := marshal(inspectContainer(someContainers()[0], img), "    ")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"Id": "ab12`, `"Status": "running"`, `"Running": true`, `"Pid": 4242`, `"Name": "/web"`, `"Memory": 268435456`, `"NanoCpus": 500000000`,
		`"IPAddress": "172.29.0.2"`, `"IPPrefixLen": 16`, `"Gateway": "172.29.0.1"`, `"HostPort": "8080"`, `"HostIp": "0.0.0.0"`, `"Path": "nginx"`,
		`"A=user"`, `"PATH=/bin"`, `"WorkingDir": "/w"`, `"Hostname": "ab12ab12ab12"`, `"/run": "size=1048576"`, `"/srv:/srv:ro"`, `"StartedAt": "2026-01-31T10:30:00Z"`,
		`"FinishedAt": "0001-01-01T00:00:00Z"`, `"c": "3"`, `"a": "1"`, `"Name": "data"`, `"ShmSize": 67108864`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in\n%s", want, b)
		}
	}
	if strings.Contains(string(b), "A=image") || strings.Contains(string(b), `\u003c`) {
		t.Errorf("unexpected text in\n%s", b)
	}
	j := inspectContainer(someContainers()[1], nil)
	if j.State.ExitCode != 137 || !j.State.OOMKilled || j.State.Running || j.State.Pid != 0 || j.NetworkSettings.IPAddress != "" {
		t.Errorf("an ended container: %+v", j.State)
	}
	if j := inspectContainer(someContainers()[2], nil); j.Config.Hostname != "" {
		t.Errorf("host network: hostname %q, want the host's own", j.Config.Hostname)
	}
}

func TestInspectImage(t *testing.T) {
	b, _ := marshal(inspectImage(someImages(t)[0]), "")
	var j imageJSON
	if err := json.Unmarshal(b, &j); err != nil {
		t.Fatal(err)
	}
	if strings.Join(j.RepoTags, " ") != "127.0.0.1:5000/base:stable debian:12" || len(j.RepoDigests) != 2 || !strings.HasPrefix(j.RepoDigests[1], "debian@sha256:77") || len(j.RootFS.Layers) != 1 {
		t.Errorf("%s", b)
	}
}

func TestTemplates(t *testing.T) {
	f, err := newFormat(`table {{.Names}}\t{{.Status}}`, true)
	if err != nil {
		t.Fatal(err)
	}
	h, err := f.execute(headers[containerRow]())
	if err != nil || h != "NAMES\tSTATUS\n" {
		t.Errorf("header %q, %v", h, err)
	}
	row := newContainerRow(someContainers()[1], noon, false)
	for text, want := range map[string]string{
		"{{.Names}} {{upper .State}}": "job EXITED", "{{json .Names}}": `"job"`, `{{join (split .Image "e") "-"}}`: "d-bian", "{{truncate .ID 3}}": "cd3",
	} {
		f, err := newFormat(text, true)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := f.execute(row); err != nil || got != want+"\n" {
			t.Errorf("%s = %q, %v; want %q", text, got, err, want)
		}
	}
	if h := headers[containerRow](); h["RunningFor"] != "CREATED" || h["ID"] != "CONTAINER ID" || h["CreatedAt"] != "CREATED AT" {
		t.Errorf("headers %v", h)
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 999: "999B", 1000: "1kB", 1090: "1.09kB", 187_400_000: "187MB", 999_999: "1000kB", 1 << 62: "4.61EB"} {
		if got := humanSize(n, 3); got != want {
			t.Errorf("humanSize(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "Less than a second", time.Second: "1 second", 45 * time.Second: "45 seconds", time.Minute: "About a minute", 5 * time.Minute: "5 minutes",
		time.Hour: "About an hour", 5 * time.Hour: "5 hours", 47 * time.Hour: "47 hours", 72 * time.Hour: "3 days", 24 * 20 * time.Hour: "2 weeks", 24 * 90 * time.Hour: "3 months",
		24 * 800 * time.Hour: "2 years",
	} {
		if got := humanTime(d); got != want {
			t.Errorf("humanTime(%v) = %q, want %q", d, got, want)
		}
	}
	if got := binarySize(8 << 30); got != "8GiB" {
		t.Errorf("binarySize = %q", got)
	}
	if got := shorten("한국어입니다", 4); got != "한국어…" {
		t.Errorf("shorten = %q", got)
	}
	if got := printable("a\x1b[31mb\nc\u0085d"); got != "a?[31mb?c?d" {
		t.Errorf("printable = %q", got)
	}
}

func TestPhaseTable(t *testing.T) {
	ms := time.Millisecond
	got := phaseTable([]undo.Span{{Name: "run.network", Start: 4 * ms, Took: 4 * ms}, {Name: "run.record", Start: 0, Took: 1 * ms}}, false)
	want := `phase           at ms   took ms
run.record      0.000     1.000  ███
run.network     4.000     4.000              ████████████
all                       8.000
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if phaseTable(nil, false) != "" {
		t.Error("a table of nothing")
	}
}

func TestProgressLines(t *testing.T) {
	now := noon
	p := &progress{now: func() time.Time { return now }, live: true}
	p.event(image.Progress{ID: "aaaaaaaaaaaa", Status: "Already exists"})
	p.event(image.Progress{ID: "bbbbbbbbbbbb", Status: "Downloading", Done: 0, Total: 40_000_000})
	p.event(image.Progress{ID: "cccccccccccc", Status: "Pulling fs layer", Total: 5_000_000})
	now = now.Add(time.Second)
	p.event(image.Progress{ID: "bbbbbbbbbbbb", Status: "Downloading", Done: 10_000_000, Total: 40_000_000})
	got := p.lines(100, 24, false)
	want := []string{
		"aaaaaaaaaaaa: Already exists",
		"bbbbbbbbbbbb: Downloading  [========>                          ] 10MB/40MB  10MB/s  3s left",
		"cccccccccccc: Pulling fs layer",
		"1 of 3 layers, 10MB of 45MB, 10MB/s, 4s left",
	}
	if len(got) != len(want) {
		t.Fatalf("lines %q", got)
	}
	for i := range want {
		a, b := got[i], want[i]
		if i == 1 { // the bar's length follows the width: compare around it
			if !strings.HasPrefix(a, "bbbbbbbbbbbb: Downloading") || !strings.HasSuffix(a, "] 10MB/40MB  10MB/s  3s left") || len(a) > 99 {
				t.Errorf("line %q, want like %q", a, b)
			}
			continue
		}
		if a != b {
			t.Errorf("line %q, want %q", a, b)
		}
	}
	if got := p.lines(100, 4, false); len(got) > 3 {
		t.Errorf("%d lines on a screen of 4", len(got))
	}
	for _, w := range []int{20, 40, 60} {
		for _, l := range p.lines(w, 24, false) {
			if n := len([]rune(l)); n >= w {
				t.Errorf("a line of %d columns on a screen of %d: %q", n, w, l)
			}
		}
	}
	for s, want := range map[float64]string{0: "0s left", 59: "59s left", 125: "2m05s left", 3720: "1h02m left", 1e9: "days left"} {
		if got := timeLeft(s); got != want {
			t.Errorf("timeLeft(%v) = %q, want %q", s, got, want)
		}
	}
}

// TestShippedUnit keeps the unit that make install installs equal to what system unit prints.
func TestShippedUnit(t *testing.T) {
	b, err := os.ReadFile("../systemd/onggi-resume.service")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(unitText, "/usr/local/bin/onggi"); string(b) != want {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
	for in, want := range map[string]string{"/a": "/a", "/a b": `"/a b"`, `/a"%$\`: `"/a\"%%$$\\"`} {
		if got := unitQuote(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
