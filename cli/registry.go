package cli

import (
	"os"
	"path/filepath"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/onggi/onggi/signature"
	"github.com/onggi/onggi/userns"
	"github.com/spf13/cobra"
)

// registryOptions is how registries are spoken to: by the host's rules, with the user's logins.
func (a *app) registryOptions(plainHTTP []string) registry.Options {
	return registry.Options{
		PlainHTTP: plainHTTP, UserAgent: "onggi/" + Version, Offline: a.offline,
		Rules: registry.NewRules(ruleFiles()), Credentials: registry.FileCredentials(credentialFiles()...),
	}
}

// ruleFiles are the places where a host says what it knows of registries. ONGGI_REGISTRIES names another directory, in
// place of all of them, which may hold certs.d and registries.conf.
func ruleFiles() registry.RuleFiles {
	if dir := os.Getenv("ONGGI_REGISTRIES"); dir != "" {
		return registry.RuleFiles{HostsDirs: []string{filepath.Join(dir, "certs.d")}, RegistriesConf: []string{filepath.Join(dir, "registries.conf")}}
	}
	f := registry.RuleFiles{
		HostsDirs: []string{"/etc/onggi/certs.d", "/etc/containerd/certs.d"}, CertDirs: []string{"/etc/docker/certs.d", "/etc/containers/certs.d"},
		RegistriesConf: []string{"/etc/containers/registries.conf"},
	}
	if own := os.Getenv("CONTAINERS_REGISTRIES_CONF"); own != "" { // as containers-registries.conf(5) has it
		f.RegistriesConf = []string{own}
	} else if home, err := os.UserHomeDir(); err == nil {
		f.RegistriesConf = append(f.RegistriesConf, filepath.Join(home, ".config/containers/registries.conf"))
	}
	return f
}

// credentialFiles are the files that hold logins, the first to be asked first: docker's, then podman's.
func credentialFiles() []string {
	var files []string
	if f := dockerConfigFile(); f != "" {
		files = append(files, f)
	}
	if f := os.Getenv("REGISTRY_AUTH_FILE"); f != "" {
		return append(files, f)
	}
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		files = append(files, filepath.Join(run, "containers/auth.json"))
	}
	if os.Geteuid() == 0 && !userns.Rootless() {
		files = append(files, "/run/containers/0/auth.json")
	}
	if home, err := os.UserHomeDir(); err == nil {
		files = append(files, filepath.Join(home, ".config/containers/auth.json"))
	}
	return files
}

// loadPolicy reads the signature policy. One that ONGGI_POLICY names has to be there.
func loadPolicy() (*signature.Policy, error) {
	path, named := os.LookupEnv("ONGGI_POLICY")
	if !named || path == "" {
		return signature.Load("/etc/onggi/policy.toml")
	}
	p, err := signature.Load(path)
	if err == nil && p == nil {
		err = &errdefs.Error{Op: "read the signature policy", What: path, Kind: errdefs.NotFound, Why: "ONGGI_POLICY names it, and it does not exist", Fix: "correct ONGGI_POLICY, or unset it"}
	}
	return p, err
}

func buildVerify(a *app, c *cobra.Command) {
	var (
		keys      []string
		identity  string
		plainHTTP []string
	)
	c.Use = "verify [FLAGS] NAME"
	c.Long = `Check an image's signature in its registry against keys, or without --key against the policy (/etc/onggi/policy.toml,
ONGGI_POLICY), and print the digest that is signed. Nothing is pulled. Signatures are cosign's with a key.`
	c.Example = `  onggi image verify --key cosign.pub registry.example.com/app:1`
	f := c.Flags()
	f.StringArrayVar(&keys, "key", nil, "public key in PEM, in a `file`; one of several has to have signed")
	f.StringVar(&identity, "identity", "", "the `name` that the signature has to be made for: repository, any, or a name (default repository)")
	f.StringArrayVar(&plainHTTP, "plain-http", nil, "reach this `registry` (host:port) without TLS")
	c.Args = takes(1, 1, "the name of an image")
	c.RunE = func(c *cobra.Command, args []string) error {
		ref, err := reference.Parse(args[0])
		if err != nil {
			return err
		}
		rule := signature.Rule{Match: "--key", Require: signature.Signed, Identity: identity}
		if identity != "" && identity != "any" && identity != "repository" {
			id, err := reference.Parse(identity)
			if err != nil {
				return reading("--identity", identity, err)
			}
			rule.Identity = id.Repository()
		}
		for _, k := range keys {
			key, err := signature.LoadKey(k, "")
			if err != nil {
				return reading("--key", k, err)
			}
			rule.Keys = append(rule.Keys, key)
		}
		if len(keys) == 0 {
			p, err := loadPolicy()
			if err != nil {
				return err
			}
			if identity != "" {
				return badFlag("--identity", identity, "the policy says for which name a signature has to be made", "give it with --key")
			}
			if rule = p.Rule(ref); rule.Require != signature.Signed {
				return &errdefs.Error{Op: "verify", What: args[0], Kind: errdefs.InvalidArgument, Why: "no rule of the policy wants a signature of it", Fix: "name a key: --key cosign.pub"}
			}
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		r := registry.New(a.registryOptions(plainHTTP))
		defer r.Close()
		desc, err := r.Resolve(ctx, ref)
		if err != nil {
			return err
		}
		if err := image.Verify(ctx, r, ref, rule, desc.Digest); err != nil {
			return err
		}
		return a.print(ref.Repository() + "@" + desc.Digest.String() + ": signed\n")
	}
}

// dockerConfigFile is where docker keeps what it is logged in with, or "".
func dockerConfigFile() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker/config.json")
}
