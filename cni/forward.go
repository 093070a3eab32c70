package cni

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/command"
)

// Some hosts drop what is forwarded between devices unless a rule of iptables accepts it; Docker sets them up so. There
// the default network needs two rules for its bridge. The firewall plugin is no substitute: it accepts answers to a
// pod only, so that host ports would be closed to other machines, and costs many processes a pod.

// forwardChain is a chain FORWARD of iptables that exists.
type forwardChain struct {
	tool  string // that changes it
	drops bool   // its policy
}

// forwardChains looks for them without making any, which the tools themselves would do.
func forwardChains(ctx context.Context) []forwardChain {
	var chains []forwardChain
	for _, family := range []struct {
		nfproto int
		tool    string // without its backend
		names   string // of the older kind's tables in use
	}{
		{unix.NFPROTO_IPV4, "iptables", "/proc/thread-self/net/ip_tables_names"},
		{unix.NFPROTO_IPV6, "ip6tables", "/proc/thread-self/net/ip6_tables_names"},
	} {
		answers, err := nftAsk(nftMessage(unix.NFT_MSG_GETCHAIN, family.nfproto, unix.NLM_F_ACK,
			attrString(unix.NFTA_CHAIN_TABLE, "filter"), attrString(unix.NFTA_CHAIN_NAME, "FORWARD")))
		if err == nil && len(answers) == 1 {
			chains = append(chains, forwardChain{family.tool + "-nft", dropsByDefault(answers[0])})
		}
		if tables, err := os.ReadFile(family.names); err == nil && strings.Contains(string(tables), "filter\n") {
			tool := family.tool + "-legacy"
			rules, err := iptables(ctx, tool, "-S", "FORWARD")
			chains = append(chains, forwardChain{tool, err == nil && strings.HasPrefix(rules, "-P FORWARD DROP")})
		}
	}
	return chains
}

// ensureForwarding has everything from and to the bridge accepted where the policy is to drop it. A host that drops but
// has no iptables was set up by somebody who knows how to let a bridge through.
func ensureForwarding(bridge string) error {
	ctx, cancel := context.WithTimeout(context.Background(), iptablesBound)
	defer cancel()
	for _, chain := range forwardChains(ctx) {
		if _, err := exec.LookPath(chain.tool); !chain.drops || err != nil {
			continue
		}
		for _, rule := range forwardRules(bridge) {
			if _, err := iptables(ctx, chain.tool, append([]string{"-C", "FORWARD"}, rule...)...); err == nil {
				continue
			}
			if _, err := iptables(ctx, chain.tool, append([]string{"-I", "FORWARD"}, rule...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeForwarding removes the rules of ensureForwarding, whatever the policy has become since.
func removeForwarding(bridge string) {
	ctx, cancel := context.WithTimeout(context.Background(), iptablesBound)
	defer cancel()
	for _, chain := range forwardChains(ctx) {
		for _, rule := range forwardRules(bridge) {
			// Fails when there is none, as nearly everywhere.
			_, _ = iptables(ctx, chain.tool, append([]string{"-D", "FORWARD"}, rule...)...)
		}
	}
}

func forwardRules(bridge string) [][]string {
	return [][]string{{"-i", bridge, "-j", "ACCEPT"}, {"-o", bridge, "-j", "ACCEPT"}}
}

// iptablesBound is for all calls together, which take some milliseconds each and wait for the lock of the older tables.
const iptablesBound = 20 * time.Second

func iptables(ctx context.Context, tool string, args ...string) (string, error) {
	path, err := exec.LookPath(tool)
	if err != nil {
		return "", err
	}
	output := command.Output{Max: maxStderr}
	c := command.Command{Path: path, Args: append([]string{tool, "-w", "10"}, args...), Stdout: &output, Stderr: &output}
	if err := c.Run(ctx); err != nil {
		return "", fmt.Errorf("%s %s: %w%s", tool, strings.Join(args, " "), err, complaint(&output))
	}
	return string(output.Bytes()), nil
}

// dropsByDefault looks for the policy in a chain's attributes.
func dropsByDefault(answer []byte) bool {
	const (
		nfDrop   = 0
		typeMask = 0x3fff // without the flags of a nested or big-endian attribute
	)
	for rest := answer[min(4, len(answer)):]; len(rest) >= 4; {
		length, kind := int(binary.NativeEndian.Uint16(rest)), binary.NativeEndian.Uint16(rest[2:])
		if length < 4 || length > len(rest) {
			return false
		}
		if kind&typeMask == unix.NFTA_CHAIN_POLICY && length == 8 {
			return binary.BigEndian.Uint32(rest[4:]) == nfDrop
		}
		rest = rest[min((length+3)&^3, len(rest)):]
	}
	return false
}
