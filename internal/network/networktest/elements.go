package networktest

import (
	"net"
	"strings"
	"testing"

	"github.com/google/nftables"
)

// Elements returns how many elements the sets and maps of a bridge's tables have.
func Elements(t testing.TB, bridge string) (n int) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	for _, f := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
		sets, err := c.GetSets(&nftables.Table{Name: bridge, Family: f})
		must(t, err)
		for _, s := range sets {
			list, err := c.GetSetElements(s)
			must(t, err)
			n += len(list)
		}
	}
	return n
}

// Links returns how many links of this machine have a name with that prefix.
func Links(t testing.TB, prefix string) (n int) {
	t.Helper()
	list, err := net.Interfaces()
	must(t, err)
	for _, l := range list {
		if strings.HasPrefix(l.Name, prefix) {
			n++
		}
	}
	return n
}
