// Package network gives each sandbox its network namespace: bridges, address leases, port maps, names.
//
// One bridge (docker's default-bridge behaviour), one nftables table named "onggi" that nothing else is touched
// beside, one lease file per address. A namespace has no name on disk: the caller holds it as a file handle and hands
// it on to the monitor, so that the kernel takes it away with the last holder, whatever crashed; its veth goes with
// it. What is recorded on disk (leases, port maps) carries the sandbox's id and is released by Detach or Sweep.
//
// Lifecycle: Attach -> (container runs) -> Detach. Detach is idempotent and needs no namespace.
package network

import (
	"context"
	"net/netip"
	"os"
)

// Manager is the networks of one root directory.
type Manager struct{}

// Options of Open.
type Options struct {
	StateDir string       // durable: the networks' configuration
	RunDir   string       // volatile: leases and port maps; emptied by a reboot
	Bridge   string       // default "onggi0"
	Subnet   netip.Prefix // default: first free of 172.29.0.0/16, 172.30.0.0/16, 10.209.0.0/16 ... that no route of the host overlaps
}

// Open reads the configuration; it changes nothing on the host.
func Open(o Options) (*Manager, error) { panic("contract") }

// Port is one published port.
type Port struct {
	HostIP        netip.Addr `json:"hostIP"`   // the zero Addr: all addresses
	HostPort      uint16     `json:"hostPort"` // 0: Attach chooses a free one
	ContainerPort uint16     `json:"containerPort"`
	Protocol      string     `json:"protocol"` // "tcp", "udp", "sctp"
}

// Endpoint is what a sandbox asks for.
type Endpoint struct {
	ID    string // the sandbox's id
	Ports []Port
}

// Attachment is what it got.
type Attachment struct {
	Bridge   string       `json:"bridge"`
	IPv4     netip.Prefix `json:"ipv4"`
	IPv6     netip.Prefix `json:"ipv6"` // zero when the host has no IPv6
	Gateway  netip.Addr   `json:"gateway"`
	Gateway6 netip.Addr   `json:"gateway6"`
	MAC      string       `json:"mac"`
	Ports    []Port       `json:"ports,omitempty"`
}

// NewNamespace makes a network namespace with loopback up and returns its handle. It leaves no other trace.
func NewNamespace() (*os.File, error) { panic("contract") }

// Attach leases an address, connects the namespace to the bridge (making bridge and table when they are not there),
// and publishes the ports. On error everything is taken back. Errors: Exhausted (no address left), Conflict (host port
// in use: says by what), Forbidden.
func (m *Manager) Attach(ctx context.Context, netns *os.File, e Endpoint) (*Attachment, error) {
	panic("contract")
}

// Detach releases everything that Attach recorded for the sandbox id. Unknown ids are not an error.
func (m *Manager) Detach(ctx context.Context, id string) error { panic("contract") }

// Sweep detaches every sandbox for which alive returns false, and removes bridge and table when nothing is attached
// and purge is set.
func (m *Manager) Sweep(ctx context.Context, alive func(id string) bool, purge bool) error {
	panic("contract")
}

// ParsePort reads docker's -p syntax: [[IP:][HOST[-HOST]]:]CONTAINER[-CONTAINER][/PROTO]; a range gives several ports.
func ParsePort(s string) ([]Port, error) { panic("contract") }

// Names is what resolv.conf and hosts are made of.
type Names struct {
	Hostname   string
	Attachment *Attachment // nil for none and host
	Host       bool        // network host: the host's files are copied
	DNS        []string
	DNSSearch  []string
	DNSOptions []string
	ExtraHosts []string // "name:ip", "name:host-gateway"
}

// ResolvConf returns /etc/resolv.conf as docker makes it: the host's, without loopback resolvers, or the given ones.
func (n Names) ResolvConf() ([]byte, error) { panic("contract") }

// Hosts returns /etc/hosts.
func (n Names) Hosts() ([]byte, error) { panic("contract") }
