// Package resolver answers the questions of containers on networks that users have made: names and aliases of the
// containers there, and everything else by asking the host's own name servers.
//
// One small process per store (`onggi-runtime resolver DIR`) does it for all of them. It is started with the first container
// that needs it, and ends by itself soon after the last one. What it listens at is 127.0.0.11 inside each container's
// network namespace: two sockets (UDP, TCP) that were opened there and handed over, so that nobody else can reach it
// whatever the host's firewall says, and no firewall of the host can come between. Its own questions to name servers come
// from the host's namespace.
//
//	network.Attach                        resolver
//	  |-- dns/ID (Config), sockets --------> DIR/resolver.sock: serves the sandbox
//	  |<-------------------------- ok
//	  |-- dns/ID is written anew             read with the next question
//	  |-- dns/ID is removed                  the sockets are closed (inotify), so that the namespace can end
//	  '-- killed: the lock is free           network.Manager.Revive starts it again and hands everything over
//
// It has no tables: what a name means is a directory of addresses that package network keeps (DIR/names/NETWORK/NAME/),
// read with each question, so that nothing is ever stale and a killed resolver has lost nothing.
//
// It leaves to package network: opening the sockets, the rules that lead port 53 there, who may be asked for what (Config).
// Source: RFC 1034, 1035, 3596, 6891; resolv.conf(5).
package resolver

import "net/netip"

// The files below DIR, and where the sockets listen.
const (
	LockFile   = "resolver.lock" // flock: held while a resolver lives
	SocketFile = "resolver.sock" // 0600, SOCK_SEQPACKET
	ConfigDir  = "dns"           // ID: Config as JSON, replaced by rename
	NamesDir   = "names"
	LeasesDir  = "leases"

	// Address is where containers find it, as docker's do. Port is where it listens: one that IANA has given to nobody, so
	// that a container may have a name server of its own at port 53. Rules in its namespace lead from one to the other.
	Address = "127.0.0.11"
	Port    = 4
)

// Config is what the resolver has to know of one sandbox.
type Config struct {
	Networks []Net `json:"networks"` // in the order in which they are asked
	// Servers are asked for what is not here; none: those of the host's resolv.conf, as it is at that moment.
	Servers []string `json:"servers,omitempty"`
	// Forward: others may be asked at all. A sandbox on internal networks alone must not reach the outside by questions
	// (CVE-2024-29018).
	Forward bool `json:"forward"`
	// Aliases are names that only this sandbox uses, by the name that they stand for.
	Aliases map[string]string `json:"aliases,omitempty"`
}

// Net is one network of a sandbox.
type Net struct {
	ID       string         `json:"id"`
	Name     string         `json:"name"`
	Prefixes []netip.Prefix `json:"prefixes"`
}

// lease is the part of an endpoint's record that a question for an address needs.
type lease struct {
	Name    string   `json:"name"`
	Names   []string `json:"names"`
	Network string   `json:"network"`
}
