package cri

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/snapfs/snapfs/internal/credentials"
)

// What is read of the messages (cri-api, pkg/apis/runtime/v1/api.proto, 1.37):
//
//	PullImageRequest   { ImageSpec image = 1; AuthConfig auth = 2; }
//	PullImageResponse  { string image_ref = 1; }
//	RemoveImageRequest { ImageSpec image = 1; }
//	ImageSpec          { string image = 1; }
//	AuthConfig         { string username = 1, password = 2, auth = 3, server_address = 4,
//	                     identity_token = 5, registry_token = 6; }

var errMessage = errors.New("malformed message")

// fields calls f with each field that has a length: strings and messages. A field
// that comes again adds to a message, and replaces a string (protobuf encoding,
// "Last One Wins").
func fields(raw []byte, f func(n protowire.Number, val []byte) error) error {
	for len(raw) > 0 {
		n, typ, size := protowire.ConsumeTag(raw)
		if size < 0 {
			return errMessage
		}
		raw = raw[size:]
		if typ != protowire.BytesType {
			if size = protowire.ConsumeFieldValue(n, typ, raw); size < 0 {
				return errMessage
			}
			raw = raw[size:]
			continue
		}
		val, size := protowire.ConsumeBytes(raw)
		if size < 0 {
			return errMessage
		}
		raw = raw[size:]
		if err := f(n, val); err != nil {
			return err
		}
	}
	return nil
}

// parsePull reads a PullImageRequest. auth is nil if it has none.
func parsePull(raw []byte) (image string, auth *credentials.Auth, err error) {
	err = fields(raw, func(n protowire.Number, val []byte) error {
		switch n {
		case 1:
			return parseSpec(val, &image)
		case 2:
			if auth == nil {
				auth = new(credentials.Auth)
			}
			return parseAuth(val, auth)
		}
		return nil
	})
	return image, auth, err
}

func parseSpec(raw []byte, image *string) error {
	return fields(raw, func(n protowire.Number, val []byte) error {
		if n == 1 {
			*image = string(val)
		}
		return nil
	})
}

func parseAuth(raw []byte, a *credentials.Auth) error {
	at := []*string{1: &a.Username, &a.Password, &a.Auth, &a.ServerAddress, &a.IdentityToken, &a.RegistryToken}
	return fields(raw, func(n protowire.Number, val []byte) error {
		if int(n) < len(at) && at[n] != nil {
			*at[n] = string(val)
		}
		return nil
	})
}

// parsePulled reads a PullImageResponse: the image's ID.
func parsePulled(raw []byte) (id string, err error) {
	err = parseSpec(raw, &id) // the same shape
	return id, err
}

// parseRemove reads a RemoveImageRequest: a reference or an ID.
func parseRemove(raw []byte) (image string, err error) {
	err = fields(raw, func(n protowire.Number, val []byte) error {
		if n == 1 {
			return parseSpec(val, &image)
		}
		return nil
	})
	return image, err
}
