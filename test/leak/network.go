package leak

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func links(*config) ([]string, error) {
	all, err := retry(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	names := deviceNames(all)
	var lines []string
	for _, link := range all {
		a := link.Attrs()
		line := fmt.Sprintf("%d %s (%s)", a.Index, a.Name, link.Type())
		if a.MasterIndex != 0 {
			line += " of " + names[a.MasterIndex]
		}
		lines = append(lines, line)
	}
	return lines, nil
}

func deviceNames(all []netlink.Link) map[int]string {
	names := map[int]string{}
	for _, link := range all {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	return names
}

func addresses(*config) ([]string, error) {
	all, err := retry(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	names := deviceNames(all)
	addrs, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, a := range addrs {
		lines = append(lines, fmt.Sprintf("%s on %s", a.IPNet, names[a.LinkIndex]))
	}
	return lines, nil
}

// routes of all tables, without those that the kernel caches.
func routes(*config) ([]string, error) {
	all, err := retry(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	names := deviceNames(all)
	var lines []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := retry(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			if r.Flags&unix.RTM_F_CLONED != 0 {
				continue
			}
			to := "default"
			if r.Dst != nil {
				to = r.Dst.String()
			}
			line := fmt.Sprintf("%s dev %s table %d type %d metric %d", to, names[r.LinkIndex], r.Table, r.Type, r.Priority)
			if r.Gw != nil {
				line += " via " + r.Gw.String()
			}
			for _, hop := range r.MultiPath {
				line += " or " + hop.String()
			}
			lines = append(lines, line)
		}
	}
	return lines, nil
}

// retry asks again when what was being listed changed meanwhile.
func retry[T any](list func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// rules are those of nftables, in which iptables-nft's are, and of the older iptables where it is in use. Missing tools
// are no error: then there is nothing to be told by them. Empty built-in chains that accept are left out, because
// iptables makes them when it is only asked to list.
func rules(*config) ([]string, error) {
	var lines []string
	if _, err := exec.LookPath("nft"); err == nil {
		out, err := exec.Command("nft", "--stateless", "list", "ruleset").Output()
		if err != nil {
			return nil, fmt.Errorf("nft: %w", err)
		}
		lines = nftLines(out)
	}
	for tool, names := range map[string]string{
		"iptables-legacy-save":  "/proc/thread-self/net/ip_tables_names",
		"ip6tables-legacy-save": "/proc/thread-self/net/ip6_tables_names",
	} {
		inUse, err := os.ReadFile(names)
		if _, missing := exec.LookPath(tool); missing != nil || err != nil || len(bytes.TrimSpace(inUse)) == 0 {
			continue // asking would put them to use
		}
		out, err := exec.Command(tool).Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tool, err)
		}
		lines = append(lines, legacyLines(strings.TrimSuffix(tool, "-save"), out)...)
	}
	return lines, nil
}

var (
	builtinTable = regexp.MustCompile(`^table (ip|ip6) (filter|nat|mangle|raw|security)$`)
	builtinChain = regexp.MustCompile(`^table (ip|ip6) \w+ chain (PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING)$`)
	legacyChain  = regexp.MustCompile(`^:(\S+) (\S+) \[`)
	counter      = regexp.MustCompile(`\bcounter packets \d+ bytes \d+ ?`)
)

// nftLines puts the table and chain before each rule. Blocks are: table ... { chain ... { rule } } .
func nftLines(out []byte) []string {
	var lines, blocks []string
	for scan := bufio.NewScanner(bytes.NewReader(out)); scan.Scan(); {
		text := strings.TrimSpace(counter.ReplaceAllString(scan.Text(), ""))
		switch {
		case text == "" || strings.HasPrefix(text, "#"):
		case text == "}":
			blocks = blocks[:max(0, len(blocks)-1)]
		case strings.HasSuffix(text, " {"):
			blocks = append(blocks, strings.TrimSuffix(text, " {"))
			if here := strings.Join(blocks, " "); !builtinTable.MatchString(here) && !builtinChain.MatchString(here) {
				lines = append(lines, here)
			}
		default:
			here := strings.Join(blocks, " ")
			if builtinChain.MatchString(here) && strings.HasPrefix(text, "type ") && strings.HasSuffix(text, "policy accept;") {
				continue
			}
			lines = append(lines, here+": "+text)
		}
	}
	return lines
}

// legacyLines reads the form of iptables-save: *table, :CHAIN POLICY [counters], -A rules.
func legacyLines(tool string, out []byte) []string {
	var lines []string
	table := ""
	for scan := bufio.NewScanner(bytes.NewReader(out)); scan.Scan(); {
		text := scan.Text()
		if name, ok := strings.CutPrefix(text, "*"); ok {
			table = name
		} else if chain := legacyChain.FindStringSubmatch(text); chain != nil && chain[2] != "ACCEPT" {
			lines = append(lines, fmt.Sprintf("%s %s chain %s policy %s", tool, table, chain[1], chain[2]))
		} else if strings.HasPrefix(text, "-A ") {
			lines = append(lines, fmt.Sprintf("%s %s %s", tool, table, text))
		}
	}
	return lines
}
