// Package metrics tells what pods and containers use in the names and labels of cAdvisor's metrics, which monitoring has been
// built on: 56 of them, as ListMetricDescriptors and ListPodSandboxMetrics give them to the kubelet, which serves them to Prometheus.
//
// The table in table.go is all of it, a row for each metric: name, help, labels and where its values come from. It does not
// change while criserver runs. What the kernel does not count has no value: pressure without cgroup2, huge pages without
// their controller.
//
// Every metric has the labels container, id, image, name, namespace and pod, in the sense of cAdvisor: id is the path of the
// cgroup, name the id of the container. Those of the network are of the whole pod, whose container and image are "".
//
// Values are whole numbers, as CRI has them: seconds are rounded down. A timestamp is 0 where the value is of this moment.
package metrics
