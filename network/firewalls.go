package network

import (
	"context"

	"golang.org/x/sys/unix"
)

// ForeignDrops returns the chains of other tables than the bridge's that drop forwarded packets by policy, as "family table
// chain": they hold up what comes from and goes to containers, whatever our own table says. bridge is Options.Bridge. It
// is an error where the kernel has no nftables.
func ForeignDrops(ctx context.Context, bridge string) ([]string, error) {
	nf, err := openSocket(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, rulesError(err)
	}
	defer nf.close()
	if bridge == "" {
		bridge = defaultBridge
	}
	list, err := nf.foreignForwardDrop(ctx, tableName(bridge))
	if err != nil {
		return nil, rulesError(err)
	}
	return list, nil
}
