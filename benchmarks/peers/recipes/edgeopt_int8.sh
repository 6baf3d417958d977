# README.md's way from a trained model to engines, for the two runtimes that are compared.
# $SETTING is the dataset's own: the demo's epochs for digits, nothing for emoji.
edgeopt compress --run run --int8 --target onnxruntime --target openvino $SETTING
edgeopt build --run run --target onnxruntime
edgeopt build --run run --target openvino
