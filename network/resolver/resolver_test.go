package resolver

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// ask1 builds a query.
func ask1(t testing.TB, name string, typ dnsmessage.Type) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 4711, RecursionDesired: true})
	n, err := dnsmessage.NewName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.StartQuestions(); err != nil {
		t.Fatal(err)
	}
	if err := b.Question(dnsmessage.Question{Name: n, Type: typ, Class: dnsmessage.ClassINET}); err != nil {
		t.Fatal(err)
	}
	msg, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// text is an answer in words: "NXDOMAIN", or its records.
func text(t testing.TB, msg []byte) string {
	t.Helper()
	if msg == nil {
		return "others"
	}
	var m dnsmessage.Message
	if err := m.Unpack(msg); err != nil {
		t.Fatal(err)
	}
	if !m.Response || m.ID != 4711 {
		t.Errorf("header: %+v", m.Header)
	}
	var out []string
	if m.RCode != 0 {
		out = append(out, m.RCode.String())
	}
	if m.Truncated {
		out = append(out, "TC")
	}
	for _, a := range m.Answers {
		switch r := a.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(r.A).String())
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(r.AAAA).String())
		case *dnsmessage.PTRResource:
			out = append(out, r.PTR.String())
		default:
			out = append(out, a.Header.Type.String())
		}
	}
	return strings.Join(out, " ")
}

// directory is a network's run directory with a few names.
func directory(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	put := func(path, content string) {
		p := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("names/n1/web/10.1.0.2", "")
	put("names/n1/web/fd01::2", "")
	put("names/n1/both/10.1.0.2", "")
	put("names/n1/both/10.1.0.3", "")
	put("names/n2/web/10.2.0.2", "")
	put("names/n2/db/10.2.0.3", "")
	put("names/n3/secret/10.3.0.2", "")
	put("leases/10.1.0.2", `{"name":"web","network":"n1"}`)
	put("leases/fd01::2", `{"name":"web","network":"n1"}`)
	put("leases/10.3.0.2", `{"name":"secret","network":"n3"}`)
	if err := os.MkdirAll(filepath.Join(dir, ConfigDir), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

var sample = Config{
	Forward: true, Aliases: map[string]string{"database": "DB"},
	Networks: []Net{
		{"n1", "front", []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd01::/64")}},
		{"n2", "Back", []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}},
	},
}

func TestLocalAnswers(t *testing.T) {
	dir := directory(t)
	for _, c := range []struct {
		name string
		typ  dnsmessage.Type
		want string
	}{
		{"web.", dnsmessage.TypeA, "10.1.0.2"},
		{"WEB.", dnsmessage.TypeAAAA, "fd01::2"},
		{"web.", dnsmessage.TypeALL, "fd01::2 10.1.0.2"},
		{"web.", dnsmessage.TypeMX, ""}, // there is such a name, and no such record: nobody else is asked
		{"web.back.", dnsmessage.TypeA, "10.2.0.2"},
		{"web.back.", dnsmessage.TypeAAAA, ""},
		{"database.", dnsmessage.TypeA, "10.2.0.3"},
		{"both.", dnsmessage.TypeA, "10.1.0.3 10.1.0.2"},
		{"secret.", dnsmessage.TypeA, "others"}, // of a network that the sandbox is not on
		{"example.com.", dnsmessage.TypeA, "others"},
		{"n3/secret.", dnsmessage.TypeA, "others"},
		{"2.0.1.10.in-addr.arpa.", dnsmessage.TypePTR, "web.front."},
		{"2." + strings.Repeat("0.", 27) + "1.0.d.f.ip6.arpa.", dnsmessage.TypePTR, "web.front."},
		{"9.0.1.10.in-addr.arpa.", dnsmessage.TypePTR, "RCodeNameError"}, // ours, and nobody's
		{"2.0.3.10.in-addr.arpa.", dnsmessage.TypePTR, "others"},
		{"1.2.3.in-addr.arpa.", dnsmessage.TypePTR, "others"},
	} {
		q, ok := parse(ask1(t, c.name, c.typ))
		if !ok {
			t.Errorf("%s: not read", c.name)
			continue
		}
		if got := text(t, sample.local(dir, &q, 1)); got != c.want {
			t.Errorf("%s %s: got %q, want %q", c.name, c.typ, got, c.want)
		}
	}
	// What cannot be answered.
	two := ask1(t, "web.", dnsmessage.TypeA)
	binary.BigEndian.PutUint16(two[4:], 2)
	two = append(two, two[12:]...)
	if q, ok := parse(two); !ok || text(t, sample.local(dir, &q, 0)) != "RCodeFormatError" {
		t.Error("two questions are not refused")
	}
	notify := ask1(t, "web.", dnsmessage.TypeA)
	notify[2] |= 4 << 3
	if q, ok := parse(notify); !ok || !strings.HasPrefix(text(t, sample.local(dir, &q, 0)), "RCodeNotImplemented") {
		t.Error("another operation is not refused")
	}
	answer := ask1(t, "web.", dnsmessage.TypeA)
	answer[2] |= 0x80
	if _, ok := parse(answer); ok {
		t.Error("an answer is taken for a question")
	}
}

// TestServe runs a resolver and a name server that it asks.
func TestServe(t *testing.T) {
	dir := directory(t)
	up, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	upTCP, err := net.Listen("tcp4", up.LocalAddr().String())
	if err != nil {
		t.Skip("the port is taken:", err)
	}
	defer upTCP.Close()
	upstream := func(q []byte, tcp bool) []byte {
		var p dnsmessage.Parser
		h, err := p.Start(q)
		if err != nil {
			return nil
		}
		question, err := p.Question()
		if err != nil {
			return nil
		}
		h.Response = true
		h.Truncated = !tcp && question.Name.String() == "big.example."
		b := dnsmessage.NewBuilder(nil, h)
		_ = b.StartQuestions()
		_ = b.Question(question)
		_ = b.StartAnswers()
		if !h.Truncated {
			for i := range 3 {
				_ = b.AResource(dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET}, dnsmessage.AResource{A: [4]byte{192, 0, 2, byte(i)}})
			}
		}
		msg, _ := b.Finish()
		return msg
	}
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := up.ReadFrom(b)
			if err != nil {
				return
			}
			wrong := append([]byte(nil), upstream(b[:n], false)...)
			wrong[0] ^= 0xff // somebody guesses
			_, _ = up.WriteTo(wrong, from)
			_, _ = up.WriteTo(upstream(b[:n], false), from)
		}
	}()
	go func() {
		for {
			c, err := upTCP.Accept()
			if err != nil {
				return
			}
			if q, err := readMessage(c); err == nil {
				_ = writeMessage(c, upstream(q, true))
			}
			_ = c.Close()
		}
	}()
	config := sample
	config.Servers = []string{"127.0.0.1:1", up.LocalAddr().String()} // the first refuses
	write := func(c Config) {
		b, err := json.Marshal(c)
		if err == nil {
			tmp := filepath.Join(dir, ConfigDir, ".new")
			if err = os.WriteFile(tmp, b, 0o600); err == nil {
				err = os.Rename(tmp, filepath.Join(dir, ConfigDir, "box"))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(config)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, dir) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	uf, _ := udp.File()
	tf, _ := tcp.File()
	defer uf.Close()
	defer tf.Close()
	said := ""
	for range 500 {
		if said = handOver(dir, "box", uf, tf); said == "ok" {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if said != "ok" {
		t.Fatalf("hand over: %s", said)
	}
	byUDP := func(q []byte) string {
		t.Helper()
		c, err := net.Dial("udp4", udp.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = c.Write(q)
		b := make([]byte, 2048)
		n, err := c.Read(b)
		if err != nil {
			return err.Error()
		}
		return text(t, b[:n])
	}
	byTCP := func(q []byte) string {
		t.Helper()
		c, err := net.Dial("tcp4", tcp.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_ = writeMessage(c, q)
		b, err := readMessage(c)
		if err != nil {
			return err.Error()
		}
		return text(t, b)
	}
	for what, got := range map[string][2]string{
		"local":            {byUDP(ask1(t, "web.", dnsmessage.TypeA)), "10.1.0.2"},
		"local by TCP":     {byTCP(ask1(t, "web.", dnsmessage.TypeA)), "10.1.0.2"},
		"forwarded":        {byUDP(ask1(t, "example.", dnsmessage.TypeA)), "192.0.2.0 192.0.2.1 192.0.2.2"},
		"forwarded by TCP": {byTCP(ask1(t, "example.", dnsmessage.TypeA)), "192.0.2.0 192.0.2.1 192.0.2.2"},
		"truncated":        {byUDP(ask1(t, "big.example.", dnsmessage.TypeA)), "TC"},
		"whole by TCP":     {byTCP(ask1(t, "big.example.", dnsmessage.TypeA)), "192.0.2.0 192.0.2.1 192.0.2.2"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: got %q, want %q", what, got[0], got[1])
		}
	}
	// What changes is seen with the next question.
	if err := os.MkdirAll(filepath.Join(dir, "names/n1/new"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "names/n1/new/10.1.0.9"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := byUDP(ask1(t, "new.", dnsmessage.TypeA)); got != "10.1.0.9" {
		t.Errorf("a new name: %q", got)
	}
	// On internal networks alone nobody else is asked (CVE-2024-29018).
	config.Forward = false
	write(config)
	if got := byUDP(ask1(t, "example.", dnsmessage.TypeA)); got != "RCodeNameError" {
		t.Errorf("internal: %q", got)
	}
	// All name servers are silent or refuse.
	config.Forward, config.Servers = true, []string{"127.0.0.1:1"}
	write(config)
	if got := byUDP(ask1(t, "example.", dnsmessage.TypeA)); got != "RCodeServerFailure" {
		t.Errorf("no server: %q", got)
	}
	// A second resolver leaves the first alone.
	if err := Serve(ctx, dir); err != nil {
		t.Errorf("a second one: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, ConfigDir, "box")); err != nil {
		t.Fatal(err)
	}
	select { // nothing is left to do: it ends by itself
	case err := <-ended:
		ended <- err
	case <-time.After(20 * time.Second):
		t.Error("it does not end")
	}
}

func handOver(dir, id string, files ...*os.File) string {
	d, err := os.Open(dir)
	if err != nil {
		return err.Error()
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: SocketPath(d)}); err != nil {
		return err.Error()
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	if err := unix.Sendmsg(fd, []byte(id), unix.UnixRights(fds...), nil, 0); err != nil {
		return err.Error()
	}
	b := make([]byte, 200)
	n, _ := unix.Read(fd, b)
	return string(b[:max(n, 0)])
}

func TestNameservers(t *testing.T) {
	got := nameservers([]byte("# x\nnameserver 192.0.2.53\nnameserver fd00::53\nnameserver moon\nnameserver 127.0.0.11\nsearch a\n"))
	if len(got) != 2 || got[0].String() != "192.0.2.53:53" || got[1].String() != "[fd00::53]:53" {
		t.Errorf("got %v", got)
	}
}

// FuzzParse: whatever a container sends, the answer is one that can be read, to the same id, and no file outside of the
// names is looked at.
func FuzzParse(f *testing.F) {
	dir := directory(f)
	f.Add(ask1(f, "web.", dnsmessage.TypeA))
	f.Add(ask1(f, "2.0.1.10.in-addr.arpa.", dnsmessage.TypePTR))
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02..\x02n3\x00\x00\x01\x00\x01"))
	f.Add(bytes.Repeat([]byte{0xc0, 0x0c}, 20))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, ok := parse(b)
		if !ok {
			return
		}
		answer := sample.local(dir, &q, 3)
		if answer == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(answer); err != nil || !m.Response || m.ID != q.id {
			t.Errorf("%q is answered by %q: %v", b, answer, err)
		}
		for _, a := range m.Answers {
			if r, ok := a.Body.(*dnsmessage.AResource); ok && r.A[1] == 3 {
				t.Errorf("%q reaches another network's name", b)
			}
		}
	})
}

func TestMessagesAreBounded(t *testing.T) {
	if err := writeMessage(io.Discard, make([]byte, maxMessage+1)); err == nil {
		t.Error("a message that is too long is written")
	}
}
