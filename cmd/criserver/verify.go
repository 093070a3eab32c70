package main

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/imageservice/trust"
)

// What imports are held to.
const (
	importsVerify = "verify"
	importsAllow  = "allow"
)

// Verify says which images may be pulled and imported.
type Verify struct {
	Policy    string   `toml:"policy" comment:"Policy file in the form of containers-policy.json(5), with public keys. Empty: none."`
	Imports   string   `toml:"imports" comment:"verify or allow. verify: imports and preloaded archives must stand what pulls must; allow: they are not asked about."`
	BinDir    string   `toml:"bin_dir" comment:"Directory of verifiers in the form of containerd's, each of which must accept. Empty: none."`
	Verifiers int      `toml:"max_verifiers" comment:"Verifiers that bin_dir may have; with more, no image may be pulled. -1: any number."`
	Timeout   Duration `toml:"per_verifier_timeout" comment:"How long a verifier may take to answer."`
}

func defaultVerify() Verify {
	return Verify{Imports: importsVerify, Verifiers: 10, Timeout: Duration(10 * time.Second)}
}

// check reads the policy too: one that is not right must not be found out after others count no more.
func (v *Verify) check(f *faults) {
	if v.Policy != "" {
		f.absolute("images.verify.policy", v.Policy)
		if _, err := trust.Load(v.Policy); err != nil {
			f.add("images.verify.policy", "%v", err)
		}
	}
	if v.BinDir != "" {
		f.absolute("images.verify.bin_dir", v.BinDir)
		if _, err := os.ReadDir(v.BinDir); err != nil {
			f.add("images.verify.bin_dir", "%v", err)
		}
	}
	f.oneOf("images.verify.imports", v.Imports, importsVerify, importsAllow)
	if v.Verifiers < -1 {
		f.add("images.verify.max_verifiers", "%d is neither a number of verifiers nor -1", v.Verifiers)
	}
	f.positive("images.verify.per_verifier_timeout", v.Timeout)
}

// verification reads what v names.
func (v Verify) verification(log *slog.Logger) (imageservice.Verification, error) {
	made := imageservice.Verification{AnyImport: v.Imports == importsAllow}
	if v.Policy != "" {
		policy, err := trust.Load(v.Policy)
		if err != nil {
			return made, fmt.Errorf("images.verify.policy: %w", err)
		}
		made.Policy = policy
	}
	if v.BinDir != "" {
		made.Verifiers = &trust.Verifiers{Dir: v.BinDir, Max: v.Verifiers, Timeout: time.Duration(v.Timeout), Log: log}
	}
	return made, nil
}
