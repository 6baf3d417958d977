# https://pypi.org/project/edgeopt: the README's way from a trained model to engines.
# $SETTING is the dataset's own: the demo's epochs for digits, nothing for emoji.
edgeopt compress --run run --int8 $SETTING
edgeopt build --run run --target onnxruntime
edgeopt build --run run --target openvino
