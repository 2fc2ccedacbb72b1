package registry

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
)

// LogIn asks the registry whether it takes the credential, and returns what to keep: the credential, or an identity
// token in place of the password when the registry's token server gives one.
func LogIn(ctx context.Context, o Options, registry string, cred Credential) (Credential, error) {
	ref, err := reference.Parse(registry + "/login")
	if err != nil || ref.Domain != registry {
		return Credential{}, &errdefs.Error{
			Op: "log in at", What: registry, Kind: errdefs.InvalidArgument,
			Why: "it is no registry: host[:port] is meant", Fix: "for example: onggi login registry.example.com",
		}
	}
	o.Credentials = func(context.Context, string) (Credential, error) { return cred, nil }
	c := New(o)
	defer c.Close()
	identity := ""
	c.identity = &identity
	all, err := c.endpoints(ref, needPush, false)
	if errdefs.Is(err, errdefs.Forbidden) {
		all, err = c.endpoints(ref, needPull, false) // pulling is all that the rules allow there
	}
	if err != nil {
		return Credential{}, err
	}
	r, err := c.do(ctx, request{
		op: "log in at", ref: reference.Reference{Domain: registry, Path: "login", Tag: "latest"}, method: http.MethodGet,
		root: true, at: all[len(all)-1],
	})
	if err != nil {
		if e := errdefs.As(err); e.What == ref.Familiar() || e.What == ref.Familiar()+":latest" {
			x := *e
			x.What = registry
			err = &x
		}
		return Credential{}, err
	}
	r.close()
	if identity != "" {
		return Credential{Username: cred.Username, IdentityToken: identity}, nil
	}
	return cred, nil
}

// storageKey is the name under which docker files a registry.
func storageKey(registry string) string { return configKeys(registry)[0] }

// SaveCredential keeps a credential as docker does: with the credential helper that file (a config.json) names for the
// registry, or else in the file. where says which: a helper's name, or "".
func SaveCredential(ctx context.Context, file, registry string, cred Credential) (where string, err error) {
	err = changeDockerConfig(file, func(cfg map[string]json.RawMessage) error {
		if where = helperOf(cfg, registry); where != "" {
			in := struct{ ServerURL, Username, Secret string }{storageKey(registry), cred.Username, cred.Password}
			if cred.IdentityToken != "" {
				in.Username, in.Secret = "<token>", cred.IdentityToken
			}
			b, err := json.Marshal(in)
			if err != nil {
				return err
			}
			if _, err := runHelper(ctx, where, "store", string(b)); err != nil {
				return err
			}
			// docker leaves an empty entry, by which others see that there is a login.
			return setAuth(cfg, registry, map[string]string{})
		}
		a := map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(cred.Username + ":" + cred.Password))}
		if cred.IdentityToken != "" {
			a["identitytoken"] = cred.IdentityToken
		}
		return setAuth(cfg, registry, a)
	})
	return where, err
}

// EraseCredential removes what is kept for a registry; found is false when there was nothing.
func EraseCredential(ctx context.Context, file, registry string) (found bool, err error) {
	err = changeDockerConfig(file, func(cfg map[string]json.RawMessage) error {
		if h := helperOf(cfg, registry); h != "" {
			for _, k := range configKeys(registry) {
				cred, err := askHelper(ctx, h, k)
				if err != nil {
					return err
				}
				if cred.zero() {
					continue
				}
				found = true
				if _, err := runHelper(ctx, h, "erase", k); err != nil {
					return err
				}
			}
		}
		var auths map[string]json.RawMessage
		if len(cfg["auths"]) > 0 {
			if err := json.Unmarshal(cfg["auths"], &auths); err != nil {
				return err
			}
		}
		for _, k := range configKeys(registry) {
			if _, ok := auths[k]; ok {
				found = true
				delete(auths, k)
			}
		}
		if auths == nil {
			return nil
		}
		return put(cfg, "auths", auths)
	})
	return found, err
}

func helperOf(cfg map[string]json.RawMessage, registry string) string {
	var d dockerConfig
	_ = json.Unmarshal(cfg["credHelpers"], &d.CredHelpers) // absent, or of another form: then there is none
	_ = json.Unmarshal(cfg["credsStore"], &d.CredsStore)
	for _, k := range configKeys(registry) {
		if h := d.CredHelpers[k]; h != "" {
			return h
		}
	}
	return d.CredsStore
}

func setAuth(cfg map[string]json.RawMessage, registry string, a map[string]string) error {
	auths := map[string]json.RawMessage{}
	if len(cfg["auths"]) > 0 {
		if err := json.Unmarshal(cfg["auths"], &auths); err != nil {
			return err
		}
	}
	for _, k := range configKeys(registry) {
		delete(auths, k) // one login for a registry, under one name
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	auths[storageKey(registry)] = b
	return put(cfg, "auths", auths)
}

func put(cfg map[string]json.RawMessage, name string, v map[string]json.RawMessage) error {
	b, err := json.Marshal(v)
	if err == nil {
		cfg[name] = b
	}
	return err
}

// changeDockerConfig replaces a config.json by what f makes of it; members that are not known here stay. It is for its
// owner only, and replaced by rename. A link is followed once: dotfiles are often links.
func changeDockerConfig(file string, f func(map[string]json.RawMessage) error) (err error) {
	defer func() {
		if err != nil && errdefs.KindOf(err) == errdefs.Unknown {
			err = &errdefs.Error{Op: "change", What: file, Kind: errdefs.KindOf(err), Err: err}
		}
	}()
	if to, err := os.Readlink(file); err == nil {
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(file), to)
		}
		file = to
	}
	cfg := map[string]json.RawMessage{}
	b, err := readFile(file, maxConfig)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(b, &cfg); err != nil {
			return &errdefs.Error{Op: "change", What: file, Kind: errdefs.InvalidArgument, Why: "it is not a docker configuration", Fix: "correct or remove it", Err: err}
		}
	}
	before, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	if err := f(cfg); err != nil {
		return err
	}
	out, err := json.MarshalIndent(cfg, "", "\t")
	if err != nil {
		return err
	}
	if after, err := json.Marshal(cfg); err == nil && slices.Equal(before, after) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	var r [6]byte
	_, _ = rand.Read(r[:]) // never fails since Go 1.24
	temp := fmt.Sprintf("%s.%s", file, hex.EncodeToString(r[:]))
	w, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(temp) // fails after the rename, as it should
	defer w.Close()
	if _, err := w.Write(append(out, '\n')); err != nil {
		return err
	}
	if err := w.Sync(); err != nil {
		return err
	}
	return os.Rename(temp, file)
}
