// Package cni attaches a pod's network namespace to its network and detaches it.
//
// It owns the choice of the network configuration (the operator's directory, watched; else the embedded default
// network), the calls of CNI plugins with their bounds, the file by which plugins find a network namespace, and the
// pod's loopback device. It creates no namespace and remembers nothing between calls: whoever attaches keeps the Debt
// until Del succeeded (sandbox does, in store/record).
//
//	debt, err := network.Plan(attachment)  // pure: which configuration, which bytes; ErrNotReady if there is none
//	...                                    // the caller records debt: from here on a Del is owed
//	result, err := network.Add(ctx, debt)  // after an error Del has been tried already, see AddError
//	debt.Result = result.Raw               // and records it again
//	err = network.Del(ctx, debt)           // repeated until nil, whatever became of pod, namespace or configuration
//
// # Configuration
//
// One network is used: of the files *.conflist, *.conf and *.json in Config.ConfDir the first in lexical order, as
// containerd and CRI-O do. The directory is read as a whole, after an inotify event and, since events can be lost and
// directories replaced, after a look at its inode numbers and times every Config.Rescan. A file that cannot be used
// leaves the last good configuration in force and is told by Status. An empty or absent directory means the embedded
// default network, if Config.Default is set, and otherwise not ready.
//
// UsePodCIDRs may write the operator's configuration for him, of a template of his and the node's pod CIDRs; never over a file
// that is not its own.
//
// # The namespace file
//
// PinNetNS bind-mounts a network namespace on a file, by convention /run/netns/cri-<sandbox id>. The mount has the
// propagation of the directory's mount: on a host whose /run is shared (systemd makes it so), CNI agents in containers
// that mount /run/netns with HostToContainer see it come and go. Nothing is remounted here, because a private
// directory would hide the pods' namespaces from exactly those agents. A copy that a container with a private mount
// of /run holds keeps the namespace alive but does not hinder UnpinNetNS (lazy unmount, then unlink).
//
// # The embedded default network
//
// Its configuration is generated for each pod, with the plugins that this pod needs. What pods share is made in-process
// before the plugins run, looked at again at every Add, and removed by RemoveDefault: the bridge; one nftables table
// inet criserver-<bridge> that masquerades (the plugin's way costs some 100 ms a pod); where the policy of forwarding is
// DROP, two rules that accept the bridge's traffic.
//
// Two sysctls of the host are changed and stay changed: forwarding of both families, by the bridge plugin, and with that
// accept_ra from 1 to 2 for devices that learn routes from IPv6 routers, since a host that forwards would no longer
// listen to them. Nobody could tell at the end who else relies on them by then; Docker, the plugins alone and every
// peer leave forwarding on for that reason.
//
// # Files on disk
//
// The generated configuration, GeneratedFile in Config.ConfDir. Else only those of the plugins; the embedded default network keeps host-local's addresses in DefaultNetwork.DataDir.
// libcni's result cache is not used: prevResult of DEL and CHECK comes from the Debt, so there is one memory of an
// attachment and not two that can differ.
//
// Concurrency: all functions are safe; calls for one attachment must not overlap (sandbox sees to that).
// Status never waits for a plugin.
package cni
