#!/bin/sh
# Takes what is mounted as secrets, then becomes the command.
#   $SECRETS/keys.sqlite           the file of keys: copied, because the server writes into it how often keys are used
#   $SECRETS/label_studio_api_key  put into the environment, where `foveal serve --label-studio` looks for it
set -eu
secrets=${FOVEAL_SECRETS:-/run/secrets}
state=${FOVEAL_STATE:-/tmp/foveal}
umask 077
mkdir -p "$state"
for secret in keys.sqlite label_studio_api_key; do
    if [ -f "$secrets/$secret" ] && [ ! -r "$secrets/$secret" ]; then
        echo "foveal: $secrets/$secret cannot be read by user $(id -u), which the server runs as: change the file's owner" >&2
        exit 1
    fi
done
if [ -f "$secrets/keys.sqlite" ]; then
    rm -f "$state"/keys.sqlite "$state"/keys.sqlite-* # of a start before: SQLite would play its journal into the new file
    cat "$secrets/keys.sqlite" >"$state/keys.sqlite"
fi
if [ -f "$secrets/label_studio_api_key" ]; then
    LABEL_STUDIO_API_KEY=$(cat "$secrets/label_studio_api_key")
    export LABEL_STUDIO_API_KEY
fi
umask 022
exec "$@"
