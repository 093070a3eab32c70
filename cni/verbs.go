package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// AddError is the error of an Add that could not be completed. Undo is nil if the DEL that follows a failed ADD
// succeeded: then nothing is owed any more. Otherwise the Debt stands.
type AddError struct {
	Err  error
	Undo error
}

func (e *AddError) Error() string {
	if e.Undo == nil {
		return e.Err.Error()
	}
	return fmt.Sprintf("%v; undo it: %v", e.Err, e.Undo)
}

// Unwrap gives the cause of the failure; that of the undo is not for deciding what went wrong.
func (e *AddError) Unwrap() error { return e.Err }

// Add attaches the pod as planned. The caller has recorded debt before. Any error is an *AddError; DEL was then tried
// on a context of its own, bounded by Config.UndoTimeout.
func (n *Network) Add(ctx context.Context, debt Debt) (_ *Result, err error) {
	defer n.meter.begin("ADD", &err)()
	result, err := n.add(ctx, &debt)
	if err == nil {
		return result, nil
	}
	undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.conf.UndoTimeout)
	defer cancel()
	return nil, &AddError{Err: err, Undo: n.Del(undoCtx, debt)}
}

func (n *Network) add(ctx context.Context, debt *Debt) (*Result, error) {
	list, rt, err := prepare(debt, debt.Attachment.NetNS)
	if err != nil {
		return nil, err
	}
	if err := n.ensureDefault(ctx, list); err != nil {
		return nil, err
	}
	var prev types.Result
	for _, p := range list.Plugins {
		call, err := n.callOf("ADD", list, p, prev, rt)
		if err != nil {
			return nil, err
		}
		if prev, err = invoke.ExecPluginWithResult(ctx, call.path, call.stdin, call.args, n.exec); err != nil {
			return nil, describeCall(p, "ADD", err)
		}
	}
	result, err := resultOf(prev, debt.Attachment.ifName(), n.conf.PreferIPv6)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", list.Name, err)
	}
	debt.Result = result.Raw
	return result, nil
}

// Del detaches what debt describes. It needs nothing but debt and the plugins: the configuration may have changed and
// the namespace be gone. It stops at the first plugin that fails, as the specification wants and for a good reason:
// plugins run in reverse, and if the address were freed while rules of a later plugin still lead to it, the next pod
// with that address would get this pod's traffic. Repeating it is always right.
func (n *Network) Del(ctx context.Context, debt Debt) (err error) {
	defer n.meter.begin("DEL", &err)()
	netNS := debt.Attachment.NetNS
	if !IsNetNS(netNS) {
		netNS = ""
	}
	list, rt, err := prepare(&debt, netNS)
	if err != nil {
		return err
	}
	prev := previous(list, debt.Result)
	for _, p := range slices.Backward(list.Plugins) {
		if err := n.run(ctx, "DEL", list, p, prev, rt); err != nil {
			return err
		}
	}
	return nil
}

// Check asks the plugins whether the attachment still is as Add left it. Configurations before CNI 0.4.0 and those
// with disableCheck cannot tell: nil.
func (n *Network) Check(ctx context.Context, debt Debt) (err error) {
	defer n.meter.begin("CHECK", &err)()
	list, rt, err := prepare(&debt, debt.Attachment.NetNS)
	if err != nil {
		return err
	}
	if can, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err != nil || !can || list.DisableCheck {
		return err
	}
	prev := previous(list, debt.Result)
	if prev == nil {
		return errors.New("check the network: the result of ADD is not known")
	}
	for _, p := range list.Plugins {
		if err := n.run(ctx, "CHECK", list, p, prev, rt); err != nil {
			return err
		}
	}
	return nil
}

// askStatus runs STATUS of every plugin of a list of CNI 1.1 or newer.
func (n *Network) askStatus(ctx context.Context, list *libcni.NetworkConfigList) error {
	for _, p := range list.Plugins {
		if err := n.run(ctx, "STATUS", list, p, nil, &libcni.RuntimeConf{}); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) run(ctx context.Context, verb string, list *libcni.NetworkConfigList, p *libcni.PluginConfig,
	prev types.Result, rt *libcni.RuntimeConf) error {
	call, err := n.callOf(verb, list, p, prev, rt)
	if err != nil {
		return err
	}
	return describeCall(p, verb, invoke.ExecPluginWithoutResult(ctx, call.path, call.stdin, call.args, n.exec))
}

// describeCall names plugin and verb if err does not yet: libcni's own errors do not.
func describeCall(p *libcni.PluginConfig, verb string, err error) error {
	if err == nil || strings.HasPrefix(err.Error(), "plugin "+p.Network.Type+": ") {
		return err
	}
	return fmt.Errorf("plugin %s: answer to %s: %w", p.Network.Type, verb, err)
}

// prepare reads what was saved.
func prepare(debt *Debt, netNS string) (*libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	if err := debt.Attachment.check(); err != nil {
		return nil, nil, err
	}
	list, err := libcni.NetworkConfFromBytes(debt.ConfList)
	if err == nil {
		err = checkList(list)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("saved network configuration: %w", err)
	}
	rt, err := debt.Attachment.runtimeConf(netNS)
	return list, rt, err
}

// previous is the saved result as prevResult of DEL and CHECK, in the version of list; nil if there is none, if it
// cannot be read, or if plugins of that version expect none. A DEL without it still frees what it can.
func previous(list *libcni.NetworkConfigList, saved []byte) types.Result {
	if len(saved) == 0 || checkNoNull(saved) != nil {
		return nil
	}
	if wanted, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err != nil || !wanted {
		return nil
	}
	result, err := create.CreateFromBytes(saved)
	if err != nil {
		return nil
	}
	result, err = result.GetAsVersion(list.CNIVersion)
	if err != nil {
		return nil
	}
	return result
}

// call is one call of one plugin, laid out.
type call struct {
	path  string
	stdin []byte
	args  *invoke.Args
}

func (n *Network) callOf(verb string, list *libcni.NetworkConfigList, p *libcni.PluginConfig,
	prev types.Result, rt *libcni.RuntimeConf) (call, error) {
	path, err := findPlugin(p.Network.Type, n.conf.BinDirs)
	if err != nil {
		return call{}, fmt.Errorf("%w (wanted for %s)", err, verb)
	}
	inject := map[string]any{"name": list.Name, "cniVersion": list.CNIVersion}
	if prev != nil {
		inject["prevResult"] = prev
	}
	if caps := capabilities(p, rt); len(caps) > 0 {
		inject["runtimeConfig"] = caps
	}
	whole, err := libcni.InjectConf(p, inject)
	if err != nil {
		return call{}, fmt.Errorf("plugin %s: configuration for %s: %w", p.Network.Type, verb, err)
	}
	return call{path: path, stdin: whole.Bytes, args: &invoke.Args{
		Command:     verb,
		ContainerID: rt.ContainerID,
		NetNS:       rt.NetNS,
		IfName:      rt.IfName,
		PluginArgs:  rt.Args,
		Path:        strings.Join(n.conf.BinDirs, ":"),
	}}, nil
}

// capabilities are those of the attachment that the plugin says it understands.
func capabilities(p *libcni.PluginConfig, rt *libcni.RuntimeConf) map[string]any {
	caps := map[string]any{}
	for name, understood := range p.Network.Capabilities {
		if value, wanted := rt.CapabilityArgs[name]; understood && wanted {
			caps[name] = value
		}
	}
	return caps
}

// IsNetNS reports whether a namespace is mounted on path, and not just the file left where one was.
func IsNetNS(path string) bool {
	var st unix.Statfs_t
	return path != "" && unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Attached names an attachment for GC.
type Attached struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"` // empty: DefaultIfName
}

// GC has everything given back that the network in force holds for attachments that are not in live: by the GC verb
// where the configuration's version has it (CNI 1.1), and for the embedded default network by a DEL for every
// container that host-local still keeps an address for. The network must not be shared with another runtime: that
// one's attachments are not in live. All errors are returned together, after everything was tried.
func (n *Network) GC(ctx context.Context, live []Attached) (err error) {
	defer n.meter.begin("GC", &err)()
	s := n.current.Load()
	if s.list == nil {
		return nil
	}
	live = slices.Clone(live)
	for i := range live {
		if live[i].IfName == "" {
			live[i].IfName = DefaultIfName
		}
	}
	if s.source == "" {
		return n.gcDefault(ctx, live)
	}
	if can, err := version.GreaterThanOrEqualTo(s.list.CNIVersion, "1.1.0"); err != nil || !can || s.list.DisableGC {
		return err
	}
	attachments, err := json.Marshal(live)
	if err != nil {
		return fmt.Errorf("collect network garbage: %w", err)
	}
	var errs []error
	for _, p := range s.list.Plugins {
		errs = append(errs, n.gcPlugin(ctx, s.list, p, attachments))
	}
	return errors.Join(errs...)
}

func (n *Network) gcPlugin(ctx context.Context, list *libcni.NetworkConfigList, p *libcni.PluginConfig,
	attachments json.RawMessage) error {
	with, err := libcni.InjectConf(p, map[string]any{
		"cni.dev/valid-attachments": attachments,
		"cni.dev/attachments":       attachments, // the name that the specification once had
	})
	if err != nil {
		return fmt.Errorf("plugin %s: configuration for GC: %w", p.Network.Type, err)
	}
	return n.run(ctx, "GC", list, with, nil, &libcni.RuntimeConf{})
}
