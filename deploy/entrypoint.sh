#!/bin/sh
# Takes what is mounted as secrets, then becomes the command.
#   $SECRETS/keys.sqlite           the file of keys: copied, because the server writes into it how often keys are used
#   $SECRETS/label_studio_api_key  put into the environment, where `foveal serve --label-studio` looks for it
set -eu
secrets=${FOVEAL_SECRETS:-/run/secrets}
state=${FOVEAL_STATE:-/run/foveal}
if [ -f "$secrets/keys.sqlite" ]; then
    (umask 077 && cat "$secrets/keys.sqlite" >"$state/keys.sqlite")
fi
if [ -f "$secrets/label_studio_api_key" ]; then
    LABEL_STUDIO_API_KEY=$(cat "$secrets/label_studio_api_key")
    export LABEL_STUDIO_API_KEY
fi
exec "$@"
