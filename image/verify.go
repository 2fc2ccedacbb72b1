package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/onggi/onggi/signature"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// How cosign keeps signatures (specs/SIGNATURE_SPEC.md): the layers of a manifest that is found by the tag
// sha256-DIGEST.sig, or as a referrer.
const (
	cosignPayload    = "application/vnd.dev.cosign.simplesigning.v1+json"
	cosignSignature  = "dev.cosignproject.cosign/signature"
	cosignReferrer   = "application/vnd.dev.cosign.artifact.sig.v1+json"
	maxSignatures    = 64 // of one manifest, and manifests
	maxReasons       = 4
	cosignTagEnding  = ".sig"
	unsignedSentence = "it has no signature"

	// Keyless signatures, and those that cosign 3 makes, are not verified (doc/decisions/22).
	cosignCertificate = "dev.sigstore.cosign/certificate"
	sigstoreBundle    = "application/vnd.dev.sigstore.bundle"
	keylessSentence   = "it is keyless or in a form that is not verified here; sign with a key in cosign's own form (cosign sign --key, for cosign 3 with --new-bundle-format=false)"
)

// Verify checks what ref names in its registry against a rule that wants signatures: that what d describes, or else one
// of the others, is signed. Nothing is kept. Errors: Forbidden (with why each signature does not do), and those of
// registry.Client.
func Verify(ctx context.Context, c *registry.Client, ref reference.Reference, rule signature.Rule, ds ...digest.Digest) error {
	var why []string
	for _, d := range ds {
		reasons, err := verifyOne(ctx, c, ref, rule, d)
		if err != nil {
			return err
		}
		if reasons == nil {
			return nil
		}
		for _, r := range reasons {
			if len(why) < maxReasons && !strings.Contains(strings.Join(why, ";"), r) {
				why = append(why, r)
			}
		}
	}
	return &errdefs.Error{
		What: ref.Familiar(), Kind: errdefs.Forbidden, Why: "the signature policy refuses it: " + cleanText(strings.Join(why, "; ")),
		Fix: "have it signed by one of the keys of the rule for " + cleanText(rule.Match) + " (cosign sign --key), or change the policy",
	}
}

// verifyOne returns nil when one signature is right, or why none is.
func verifyOne(ctx context.Context, c *registry.Client, ref reference.Reference, rule signature.Rule, d digest.Digest) ([]string, error) {
	found, err := signatures(ctx, c, ref, d)
	if err != nil {
		return nil, err
	}
	reasons := []string{}
	for _, m := range found {
		raw, err := c.Manifest(ctx, ref, ocispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size})
		if err != nil {
			return nil, err
		}
		doc, err := readPushed(m, raw)
		if err != nil {
			reasons = append(reasons, err.Error())
			continue
		}
		for i, l := range doc.manifest.Layers {
			if l.MediaType != cosignPayload || i >= maxSignatures {
				continue
			}
			if l.Size > signature.MaxPayload {
				reasons = append(reasons, fmt.Sprintf("a signature's payload has %d bytes", l.Size))
				continue
			}
			p, err := payloadOf(ctx, c, ref, l)
			if err != nil {
				return nil, err
			}
			if err = rule.Verify(ref, d, p, l.Annotations[cosignSignature]); err == nil {
				return nil, nil
			}
			if l.Annotations[cosignCertificate] != "" {
				err = errors.New(keylessSentence)
			}
			reasons = append(reasons, "a signature of "+short(d)+" does not do: "+err.Error())
		}
	}
	if len(reasons) > 0 {
		return reasons, nil
	}
	// What else may be meant as a signature is told, so that nobody looks for a fault in the registry.
	others, err := c.Referrers(ctx, ref, d, "")
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		if strings.HasPrefix(o.ArtifactType, sigstoreBundle) {
			return []string{"its signature is a bundle of Sigstore's: " + keylessSentence}, nil
		}
	}
	return []string{unsignedSentence}, nil
}

// signatures lists the manifests that hold signatures of d.
func signatures(ctx context.Context, c *registry.Client, ref reference.Reference, d digest.Digest) ([]ocispec.Descriptor, error) {
	list, err := c.Referrers(ctx, ref, d, cosignReferrer)
	if err != nil {
		return nil, err
	}
	tag := reference.Reference{Domain: ref.Domain, Path: ref.Path, Tag: registry.ReferrersTag(d) + cosignTagEnding}
	desc, err := c.Resolve(ctx, tag)
	switch {
	case err == nil:
		list = append(list, desc)
	case !errdefs.Is(err, errdefs.NotFound):
		return nil, err
	}
	return list[:min(len(list), maxSignatures)], nil
}

// payloadOf fetches a small blob, verified.
func payloadOf(ctx context.Context, c *registry.Client, ref reference.Reference, d ocispec.Descriptor) ([]byte, error) {
	r, err := c.Blob(ctx, ref, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, d.Size) // bounded by the caller
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	h := content.NewHash(d.Digest)
	h.Write(b)
	if got := digest.NewDigest(d.Digest.Algorithm(), h); got != d.Digest {
		return nil, malformed("the signature's payload", "its digest is %s instead of %s", got, d.Digest)
	}
	return b, nil
}

// allowed holds the policy against what is about to be brought in: before anything of it is unpacked.
func (o PullOptions) allowed(ctx context.Context, ref reference.Reference, ds ...digest.Digest) error {
	rule := o.Policy.Rule(ref)
	var err error
	switch rule.Require {
	case signature.Accept:
		return nil
	case signature.Reject:
		err = &errdefs.Error{
			What: ref.Familiar(), Kind: errdefs.Forbidden, Why: "the signature policy refuses all images of " + cleanText(ref.Repository()),
			Fix: "choose an image of another registry, or change the policy",
		}
	default:
		err = Verify(ctx, o.Registry, ref, rule, ds...)
	}
	if errdefs.Is(err, errdefs.Forbidden) && rule.Warn {
		if o.Warn != nil {
			o.Warn(errdefs.As(err).Error())
		}
		return nil
	}
	return err
}
