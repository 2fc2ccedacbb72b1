package cli

import (
	"strconv"
	"strings"

	"github.com/onggi/onggi/build"
)

// attestations reads --attest, --provenance and --sbom, the latter two having the last word, as buildx's.
func (b *buildFlags) attestations(o *build.Options) error {
	for _, s := range b.attests {
		kind, rest, _ := strings.Cut(s, ",")
		flag := map[string]string{"type=provenance": "provenance", "type=sbom": "sbom"}[kind]
		if flag == "" {
			return badFlag("--attest", s, "there is no such attestation", "use type=provenance or type=sbom")
		}
		if rest == "" {
			rest = "true"
		}
		if err := b.attestation(o, "--attest", flag, rest); err != nil {
			return err
		}
	}
	for flag, v := range map[string]string{"provenance": b.provenance, "sbom": b.sbom} {
		if v != "" {
			if err := b.attestation(o, "--"+flag, flag, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *buildFlags) attestation(o *build.Options, flag, kind, value string) error {
	on, mode := true, build.MinProvenance
	for _, f := range strings.Split(value, ",") {
		k, v, ok := strings.Cut(f, "=")
		t, err := strconv.ParseBool(f)
		switch {
		case !ok && err == nil:
			on = t
		case k == "disabled":
			if t, err = strconv.ParseBool(v); err != nil {
				return badFlag(flag, value, "disabled is neither true nor false", "write disabled=true")
			}
			on = !t
		case kind == "provenance" && k == "mode" && (v == "min" || v == "max"):
			mode = build.Provenance(v)
		case kind == "provenance" && k == "version" && v == "v1":
		case kind == "sbom" && k == "generator":
			return badFlag(flag, value, "a generator is a program from a registry and is not run: the packages are read from the image's databases", "leave it out")
		default:
			return badFlag(flag, value, "it has no field "+strconv.Quote(f), "use true, false"+map[string]string{"provenance": ", mode=min or mode=max"}[kind])
		}
	}
	if kind == "sbom" {
		o.SBOM = on
		return nil
	}
	if o.Provenance = mode; !on {
		o.Provenance = build.NoProvenance
	}
	return nil
}
