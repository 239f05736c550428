#!/usr/bin/env bash
# Asks a TensorFlow Serving by REST for the overlay of a picture; needs curl, base64 and sed.
#
#     serving/client.sh street.jpg street_overlay.png [http://localhost:8501] [street]
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 PICTURE OVERLAY.png [SERVER] [MODEL]" >&2; exit 2; }
picture=$1 overlay=$2 server=${3:-http://localhost:8501} model=${4:-street}
[ ! "$overlay" -ef "$picture" ] || { echo "error: $overlay is the picture: name another" >&2; exit 1; }
[ -f "$picture" ] || { echo "error: there is no file $picture" >&2; exit 1; }

answer=$(
    { printf '{"signature_name": "serve_png", "inputs": {"image_bytes": [{"b64": "'
      base64 <"$picture" | tr -d '\n'
      printf '"}]}}'; } |
    curl --silent --show-error --max-time 60 --data-binary @- "$server/v1/models/$model:predict"
) || exit 1
encoded=$(tr -d '\n ' <<<"$answer" | sed -n 's/.*"overlay_png_bytes":\[{"b64":"\([^"]*\)".*/\1/p')
[ -n "$encoded" ] || { echo "error: $server answers:" $(tr -d '\n' <<<"$answer") >&2; exit 1; }
base64 --decode <<<"$encoded" >"$overlay"
echo "$overlay"
