// Java's HttpClient with its defaults: it asks for HTTP/2 with `Upgrade: h2c`.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.List;

public class UseHttpClient {
    public static void main(String[] arguments) throws Exception {
        String url = arguments[0], model = arguments[1];
        HttpClient client = HttpClient.newHttpClient();
        String body = "{\"model\": \"" + model + "\", \"temperature\": 0, \"max_tokens\": 40, \"stream\": %s, \"messages\": "
            + "[{\"role\": \"user\", \"content\": \"What is the capital of Japan? Answer in one sentence.\"}]}";

        HttpResponse<String> whole = client.send(asked(url, body.formatted(false)), HttpResponse.BodyHandlers.ofString());
        check("chat", whole.statusCode() == 200 && whole.body().contains("Tokyo"), whole.body());

        HttpResponse<java.util.stream.Stream<String>> streamed =
            client.send(asked(url, body.formatted(true)), HttpResponse.BodyHandlers.ofLines());
        List<String> events = streamed.body().filter(line -> line.startsWith("data: ")).toList();
        check("stream", events.size() > 3 && events.get(events.size() - 1).equals("data: [DONE]"), events.size() + " events");
    }

    static HttpRequest asked(String url, String body) {
        return HttpRequest.newBuilder(URI.create(url + "/v1/chat/completions"))
            .header("Content-Type", "application/json").POST(HttpRequest.BodyPublishers.ofString(body)).build();
    }

    static void check(String name, boolean isRight, String seen) {
        if (!isRight) throw new AssertionError(name + ": " + seen);
        String plain = seen.replaceAll("[\\\\\"\\n]", " ");
        System.out.println("{\"check\": \"" + name + "\", \"seen\": \"" + plain.substring(0, Math.min(200, plain.length())) + "\"}");
    }
}
