package cni

import (
	"encoding/json"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"
)

// What plugins answer and what lies in the configuration directory is written by others.
func FuzzResult(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.1.2.3/24","interface":0}]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.3/24"}}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[null],"ips":[null,{"interface":-1}]}`))
	f.Add([]byte(`null`))
	list, err := parseList([]byte(conflist("x")))
	if err != nil {
		f.Fatal(err)
	}
	older, err := parseList([]byte(`{"cniVersion":"0.4.0","name":"x","plugins":[{"type":"p0"}]}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		previous(list, data)
		previous(older, data)
		result, err := create.CreateFromBytes(data)
		if err != nil || checkNoNull(data) != nil { // ExecPlugin and libcni refuse it
			return
		}
		got, err := resultOf(result, DefaultIfName, false)
		if err == nil && (len(got.IPs) == 0 || !json.Valid(got.Raw)) {
			t.Errorf("result %+v", got)
		}
	})
}

func FuzzConfList(f *testing.F) {
	f.Add([]byte(conflist("x")))
	f.Add([]byte(`{"cniVersions":["1.0.0",1],"name":"a","plugins":[{"type":"p","capabilities":{"portMappings":true}}]}`))
	f.Add([]byte(`{"name":"a","plugins":[null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseList(data)
		if err != nil {
			return
		}
		if len(list.Plugins) == 0 || list.Name == "" || list.Plugins[0].Network.Type == "" {
			t.Errorf("accepted %q", data)
		}
	})
}
