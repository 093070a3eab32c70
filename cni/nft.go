package cni

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// This file speaks nftables over netlink for the one rule that the embedded default network needs, so that neither
// nft nor iptables need be installed nor run at a pod's start.

// nftUsable asks the kernel for the generation of its ruleset, which every nftables can tell.
func nftUsable() bool {
	_, err := nftAsk(nftMessage(unix.NFT_MSG_GETGEN, unix.AF_UNSPEC, unix.NLM_F_ACK, nil))
	return err == nil
}

// ensureMasquerade makes the table with a rule per subnet unless the table is there: what a pod sends to anywhere but
// the bridge leaves with the host's address.
func ensureMasquerade(table, bridge string, subnets []netip.Prefix) error {
	ask := nftMessage(unix.NFT_MSG_GETTABLE, unix.NFPROTO_INET, unix.NLM_F_ACK, attrString(unix.NFTA_TABLE_NAME, table))
	if _, err := nftAsk(ask); !errors.Is(err, unix.ENOENT) {
		return err
	}
	const create = unix.NLM_F_CREATE | unix.NLM_F_ACK
	hook := attrNest(unix.NFTA_CHAIN_HOOK,
		attrUint32(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_POST_ROUTING),
		attrUint32(unix.NFTA_HOOK_PRIORITY, 100)) // srcnat
	messages := [][]byte{
		// EXCL: of two that come at once the second adds no second set of rules.
		nftMessage(unix.NFT_MSG_NEWTABLE, unix.NFPROTO_INET, create|unix.NLM_F_EXCL, attrString(unix.NFTA_TABLE_NAME, table)),
		nftMessage(unix.NFT_MSG_NEWCHAIN, unix.NFPROTO_INET, create,
			attrString(unix.NFTA_CHAIN_TABLE, table), attrString(unix.NFTA_CHAIN_NAME, "postrouting"),
			hook, attrString(unix.NFTA_CHAIN_TYPE, "nat")),
	}
	for _, s := range subnets {
		messages = append(messages, nftMessage(unix.NFT_MSG_NEWRULE, unix.NFPROTO_INET, create|unix.NLM_F_APPEND,
			attrString(unix.NFTA_RULE_TABLE, table), attrString(unix.NFTA_RULE_CHAIN, "postrouting"),
			attrNest(unix.NFTA_RULE_EXPRESSIONS, masqueradeRule(s, bridge)...)))
	}
	if err := nftBatch(messages); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// deleteTable is no error if there is no such table or no nftables.
func deleteTable(table string) error {
	if !nftUsable() {
		return nil
	}
	err := nftBatch([][]byte{nftMessage(unix.NFT_MSG_DELTABLE, unix.NFPROTO_INET, unix.NLM_F_ACK,
		attrString(unix.NFTA_TABLE_NAME, table))})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// masqueradeRule is: meta nfproto <family> <family> saddr <subnet> oifname != <bridge> masquerade.
func masqueradeRule(subnet netip.Prefix, bridge string) [][]byte {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(12) // of saddr in its header
	if subnet.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 8
	}
	addr := subnet.Addr().AsSlice()
	mask := make([]byte, len(addr))
	for bit := range subnet.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	device := make([]byte, unix.IFNAMSIZ)
	copy(device, bridge)
	return [][]byte{
		exprMeta(unix.NFT_META_NFPROTO), exprCompare(unix.NFT_CMP_EQ, []byte{family}),
		expr("payload", attrUint32(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1),
			attrUint32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER),
			attrUint32(unix.NFTA_PAYLOAD_OFFSET, offset), attrUint32(unix.NFTA_PAYLOAD_LEN, uint32(len(addr)))),
		expr("bitwise", attrUint32(unix.NFTA_BITWISE_SREG, unix.NFT_REG_1), attrUint32(unix.NFTA_BITWISE_DREG, unix.NFT_REG_1),
			attrUint32(unix.NFTA_BITWISE_LEN, uint32(len(addr))), attrData(unix.NFTA_BITWISE_MASK, mask),
			attrData(unix.NFTA_BITWISE_XOR, make([]byte, len(addr)))),
		exprCompare(unix.NFT_CMP_EQ, addr),
		exprMeta(unix.NFT_META_OIFNAME), exprCompare(unix.NFT_CMP_NEQ, device),
		expr("masq"),
	}
}

func exprMeta(key uint32) []byte {
	return expr("meta", attrUint32(unix.NFTA_META_DREG, unix.NFT_REG_1), attrUint32(unix.NFTA_META_KEY, key))
}

func exprCompare(op uint32, value []byte) []byte {
	return expr("cmp", attrUint32(unix.NFTA_CMP_SREG, unix.NFT_REG_1), attrUint32(unix.NFTA_CMP_OP, op),
		attrData(unix.NFTA_CMP_DATA, value))
}

func expr(name string, attrs ...[]byte) []byte {
	return attrNest(unix.NFTA_LIST_ELEM, attrString(unix.NFTA_EXPR_NAME, name), attrNest(unix.NFTA_EXPR_DATA, attrs...))
}

// attr lays out one netlink attribute, padded to four bytes.
func attr(kind uint16, value []byte) []byte {
	const header = 4
	b := make([]byte, header, header+len(value)+3)
	binary.NativeEndian.PutUint16(b, uint16(header+len(value)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	b = append(b, value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func attrString(kind uint16, s string) []byte { return attr(kind, append([]byte(s), 0)) }

// attrUint32: nftables has all its numbers in network byte order.
func attrUint32(kind uint16, v uint32) []byte {
	return attr(kind, binary.BigEndian.AppendUint32(nil, v))
}

func attrNest(kind uint16, attrs ...[]byte) []byte {
	var all []byte
	for _, a := range attrs {
		all = append(all, a...)
	}
	return attr(kind|unix.NLA_F_NESTED, all)
}

func attrData(kind uint16, value []byte) []byte {
	return attrNest(kind, attr(unix.NFTA_DATA_VALUE, value))
}

// nftMessage lays out a request; nftAsk and nftBatch number it.
func nftMessage(kind, family int, flags uint16, attrs ...[]byte) []byte {
	return netfilterMessage(uint16(unix.NFNL_SUBSYS_NFTABLES<<8|kind), family, 0, flags, attrs...)
}

func netfilterMessage(kind uint16, family int, resource, flags uint16, attrs ...[]byte) []byte {
	b := make([]byte, unix.SizeofNlMsghdr+4)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags|unix.NLM_F_REQUEST)
	b[unix.SizeofNlMsghdr] = byte(family)
	binary.BigEndian.PutUint16(b[unix.SizeofNlMsghdr+2:], resource)
	for _, a := range attrs {
		b = append(b, a...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

// nftBatch has all messages, each of which asks for an acknowledgement, done as one transaction or none of them.
func nftBatch(messages [][]byte) error {
	begin := netfilterMessage(unix.NFNL_MSG_BATCH_BEGIN, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, 0)
	end := netfilterMessage(unix.NFNL_MSG_BATCH_END, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, 0)
	_, err := exchange(append(append([][]byte{begin}, messages...), end), len(messages))
	return err
}

// nftAsk sends one message that asks for an acknowledgement and returns the answers before it.
func nftAsk(message []byte) ([][]byte, error) { return exchange([][]byte{message}, 1) }

// exchange sends messages in one packet and reads until acks acknowledgements or the first error came. The kernel
// answers within the send, so that nothing here waits.
func exchange(messages [][]byte, acks int) (answers [][]byte, err error) {
	sock, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	defer func() { _ = unix.Close(sock) }()
	var packet []byte
	for i, m := range messages {
		binary.NativeEndian.PutUint32(m[8:], uint32(i)) // sequence number
		packet = append(packet, m...)
	}
	if err := unix.Sendto(sock, packet, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("netlink send: %w", err)
	}
	buf := make([]byte, 64<<10)
	for acks > 0 {
		size, err := unix.Read(sock, buf)
		if err != nil {
			return nil, fmt.Errorf("netlink receive: %w", err)
		}
		for rest := buf[:size]; len(rest) >= unix.SizeofNlMsghdr; {
			length := int(binary.NativeEndian.Uint32(rest))
			if length < unix.SizeofNlMsghdr || length > len(rest) {
				return nil, errors.New("netlink receive: a message of impossible length")
			}
			kind, body := binary.NativeEndian.Uint16(rest[4:]), rest[unix.SizeofNlMsghdr:length]
			switch {
			case kind == unix.NLMSG_ERROR && len(body) >= 4:
				if errno := -int32(binary.NativeEndian.Uint32(body)); errno != 0 {
					return nil, unix.Errno(errno)
				}
				acks--
			case kind != unix.NLMSG_DONE:
				answers = append(answers, append([]byte(nil), body...))
			}
			rest = rest[min((length+3)&^3, len(rest)):]
		}
	}
	return answers, nil
}
